"""What is counted of each model that is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from superduper.serving.times import Times

ROW_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0)
COUNTS = ("failed", "setbacks", "left_to_plain")
WORKING = ("preprocess", "forward", "postprocess")
STAGES = ("queue", *WORKING)


@dataclass
class Figures:
    """Of one model; written by its batcher's thread."""

    stages: dict[str, Times] = field(default_factory=lambda: {name: Times() for name in STAGES})
    """Per request for the queue, per batch for the others."""

    rows: Times = field(default_factory=lambda: Times(ROW_BOUNDS))
    """Rows of each batch."""

    failed: int = 0
    """Requests that ended with an error."""

    setbacks: int = 0
    """Times its process died, hung, or could not load it."""

    lost: float = 0.0
    """Seconds of work that ended the process."""

    left_to_plain: int = 0
    """Batches that a faster form of the model left to the plain one."""

    @property
    def worked(self) -> float:
        """The seconds that the model has worked for batches."""
        return self.lost + sum(self.stages[name].total for name in WORKING)


@dataclass(frozen=True)
class ModelState:
    """A model that is loaded, at one moment."""

    id: str
    figures: Figures
    waiting: int
    memory_mb: int
    form: Mapping[str, Any] | None = None
    """What became of the faster form that is wished for; None if none is. See `choice.Report`."""
    trouble: str = ""
    """Why it is given up for a while; empty if it is not."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "ModelState":
        """What another process tells of its own with `to_document`."""
        stages = {name: Times.of(times) for name, times in told["stages"].items()}
        counts = {name: told[name] for name in COUNTS}
        figures = Figures(stages, Times.of(told["rows"]), **counts)
        own = {name: told[name] for name in ("id", "waiting", "memory_mb", "form", "trouble")}
        return cls(figures=figures, **own)

    def to_document(self) -> dict[str, Any]:
        """What there is to tell, for another process."""
        figures = self.figures
        return {
            "id": self.id,
            "stages": {name: times.to_document() for name, times in figures.stages.items()},
            "rows": figures.rows.to_document(),
            **{name: getattr(figures, name) for name in COUNTS},
            "waiting": self.waiting,
            "memory_mb": self.memory_mb,
            "form": self.form,
            "trouble": self.trouble,
        }
