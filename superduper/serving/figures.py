"""What is counted of each model that is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from superduper.serving.times import Times

ROW_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0)
STAGES = ("queue", "preprocess", "forward", "postprocess")


@dataclass
class Figures:
    """Of one model; written by its batcher's thread."""

    stages: dict[str, Times] = field(default_factory=lambda: {name: Times() for name in STAGES})
    """Per request for the queue, per batch for the others."""

    rows: Times = field(default_factory=lambda: Times(ROW_BOUNDS))
    """Rows of each batch."""

    failed: int = 0
    """Requests that ended with an error."""

    left_to_plain: int = 0
    """Batches that a faster form of the model left to the plain one."""


@dataclass(frozen=True)
class ModelState:
    """A model that is loaded, at one moment."""

    id: str
    figures: Figures
    waiting: int
    memory_mb: int
    form: Mapping[str, Any] | None = None
    """What became of the faster form that is wished for; None if none is. See `choice.Report`."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "ModelState":
        """What another process tells of its own with `to_document`."""
        stages = {name: Times.of(times) for name, times in told["stages"].items()}
        figures = Figures(stages, Times.of(told["rows"]), told["failed"], told["left_to_plain"])
        return cls(told["id"], figures, told["waiting"], told["memory_mb"], told["form"])

    def to_document(self) -> dict[str, Any]:
        """What there is to tell, for another process."""
        figures = self.figures
        return {
            "id": self.id,
            "stages": {name: times.to_document() for name, times in figures.stages.items()},
            "rows": figures.rows.to_document(),
            "failed": figures.failed,
            "left_to_plain": figures.left_to_plain,
            "waiting": self.waiting,
            "memory_mb": self.memory_mb,
            "form": self.form,
        }
