"""Running values kept as sums and counts, so that a last batch of another size weighs its part."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

import torch

from superduper.training.graph import Frame
from superduper.training.ranking import prefers_high
from superduper.training.sources import Batch


def is_elsewhere(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether a value is on a GPU: to look at it would be to wait until it is computed."""
    return isinstance(value, torch.Tensor) and value.device.type != "cpu"


class Metric(Protocol):
    """A measure of one pass over validation data: reset, update with each batch, compute."""

    higher_is_better: bool

    def reset(self) -> None: ...

    def update(self, frame: Frame, batch: Batch) -> None: ...

    def compute(self) -> float: ...


class Means:
    """Means by name, each value weighted by the number of records it is the mean of."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor | float] = {}
        self.n = 0

    def add(self, values: Mapping[str, torch.Tensor | float], n: int) -> None:
        """Take in the means of `n` records. Does not wait for a GPU to finish."""
        sums = self.sums
        for name, value in values.items():
            if is_elsewhere(value):
                sums[name] = sums.get(name, 0.0) + value.double() * n
            else:
                # In main memory a plain number is ten times as fast as a tensor of one.
                sums[name] = sums.get(name, 0.0) + float(value) * n
        self.n += n

    def compute(self) -> dict[str, float]:
        """The means so far."""
        return {name: float(total) / self.n for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """The sums and the count."""
        return {"sums": dict(self.sums), "n": self.n}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from sums and a count."""
        self.sums = dict(state["sums"])
        self.n = state["n"]


class StreamMetric:
    """An object with `update` and `compute` (a torchmetrics metric) on two entries of the frame."""

    def __init__(self, metric: Any, inputs: tuple[str, ...] = ("output", "y")) -> None:
        self.metric = metric
        self.inputs = inputs
        self.higher_is_better = prefers_high(metric)

    def reset(self) -> None:
        """Forget what was seen."""
        self.metric.reset()

    def update(self, frame: Frame, batch: Batch) -> None:
        """Take in a batch."""
        self.metric.update(*[frame[name] for name in self.inputs])

    def compute(self) -> float:
        """The value over all that was seen."""
        return float(self.metric.compute())


def is_stream_metric(metric: Any) -> bool:
    """Whether a metric is fed batch by batch, as torchmetrics' are."""
    return all(callable(getattr(metric, name, None)) for name in ("reset", "update", "compute"))
