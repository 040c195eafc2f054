"""A trainer's own step functions as an objective of the engine's."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from superduper.training.batch_results import Results, detached
from superduper.training.graph import Frame, Graph
from superduper.training.loaders import moved
from superduper.training.metrics import is_elsewhere
from superduper.training.objective import Objective, StepResult
from superduper.training.precision import MixedPrecision

StepFunction = Callable[..., Any]


class BatchObjective(Objective):
    """Steps are `train_batch(*batch)` and `evaluate_batch(*batch)`, which return batch sums.

    The sums of the epoch are kept, without their autograd history, for its summary.
    """

    def __init__(
        self,
        train_batch: StepFunction,
        evaluate_batch: StepFunction,
        mixed_precision: str | None = None,
    ) -> None:
        super().__init__(())
        self._mixed_precision = mixed_precision
        self._train_batch = train_batch
        self._evaluate_batch = evaluate_batch
        self.train_results: list[Results] = []
        self.validate_results: list[Results] = []
        self.train_n = 0
        self.validate_n = 0
        self._device: torch.device | None = None

    def begin_training(self) -> None:
        """Forget the training results of the epoch before."""
        self.train_results, self.train_n = [], 0
        self._device = None

    def begin_validation(self) -> None:
        """Forget the validation results of the epoch before."""
        self.validate_results, self.validate_n = [], 0
        self._device = None

    def step(
        self, graph: Graph, frame: Frame, n: int, optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> StepResult:
        """One step of training, as the trainer has it."""
        batch = self._on_device(graph, frame)
        with _mutable_graph(len(optimizers) > 1), self.precision.forward():
            returned = _called(self._train_batch, batch)
        results = detached(returned, "train_batch")
        if self.part is not None:
            results, n = self.part.sum(results), self.part.whole
        self.train_results.append(results)
        self.train_n += n
        return StepResult(_means(results, n), frame, n)

    def evaluate(self, graph: Graph, frame: Frame, n: int) -> StepResult:
        """The results of a batch, without training on it."""
        results = detached(
            _called(self._evaluate_batch, self._on_device(graph, frame)), "evaluate_batch"
        )
        self.validate_results.append(results)
        self.validate_n += n
        return StepResult(_means(results, n), frame, n)

    def _on_device(self, graph: Graph, frame: Frame) -> tuple[Any, ...]:
        # Looked for once an epoch: in a small model it takes as long as a layer does.
        if self._device is None:
            self._device = next(graph.parameters()).device
            self.precision = MixedPrecision(self._mixed_precision, self._device)
        batch: tuple[Any, ...] = frame["batch"]
        return batch if self._device.type == "cpu" else moved(batch, self._device)

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """Every sum, per record."""
        return dict(means)

    def state_dict(self) -> dict[str, Any]:
        """The training results of the epoch that is being trained."""
        return {"results": list(self.train_results), "n": self.train_n}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.train_results, self.train_n = list(state["results"]), state["n"]


def _called(step: StepFunction, batch: tuple[Any, ...]) -> Any:
    """What a step returns; what it raises says which shapes it was given."""
    try:
        return step(*batch)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(
            str(tuple(part.shape)) if hasattr(part, "shape") else type(part).__name__
            for part in batch
        )
        name = getattr(step, "__name__", "the step")
        error.add_note(f"{name} was given a batch of the shapes {shapes}")
        raise


def _mutable_graph(several: bool) -> contextlib.AbstractContextManager[Any]:
    """Let one optimizer step before another's loss has gone backward through the same weights.

    torch otherwise refuses that second backward; here it sees the weights as they were forward.
    """
    if several:
        return torch.autograd.graph.allow_mutation_on_saved_tensors()
    return contextlib.nullcontext()


def _means(results: Results, n: int) -> dict[str, torch.Tensor | float]:
    return {
        key: value / n if is_elsewhere(value) else float(value) / n
        for key, value in results.items()
    }
