"""What is minimised: terms of a loss, and the one training step they make.

A step is forward, sum of the terms, one backward, one step of every optimizer. An objective with
another step (two optimizers in turn, a user's own `train_batch`) overrides `step`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from superduper.errors import InvalidInput
from superduper.training.graph import Frame, Graph
from superduper.training.optimizers import forget_gradients
from superduper.training.precision import MixedPrecision

Loss = Callable[..., torch.Tensor]


class Part(Protocol):
    """What makes of a process's part of a batch, where several share each, the whole batch."""

    whole: int  # the number of records of the whole batch

    def mean(self, values: Any) -> Any: ...

    def sum(self, values: Any) -> Any: ...


@dataclass(frozen=True)
class Term:
    """A part of the loss: `function(*inputs)`, the inputs named in the frame, times `weight`."""

    name: str
    function: Loss
    inputs: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class StepResult:
    """What a step gives to those who follow: detached losses, the frame, the number of records."""

    losses: Mapping[str, torch.Tensor | float]
    frame: Frame = field(repr=False)
    n: int


class Objective:
    """A weighted sum of terms."""

    #: Where several processes share each batch, this one's part; None in a process alone.
    part: Part | None = None

    def __init__(self, terms: Sequence[Term], precision: MixedPrecision | None = None) -> None:
        self.terms = tuple(terms)
        self.precision = precision or MixedPrecision()
        # A loss that sums over the batch is divided by the number of records when it is reported.
        self.sums = {
            term.name: getattr(term.function, "reduction", "mean") == "sum" for term in terms
        }

    def losses(self, frame: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Each term's value for a frame that the graph has completed."""
        return {term.name: self._value(term, frame) for term in self.terms}

    def _value(self, term: Term, frame: Mapping[str, Any]) -> torch.Tensor:
        value = term.function(*[frame[name] for name in term.inputs])
        if not isinstance(value, torch.Tensor):
            raise InvalidInput(
                f"loss {term.name!r} returned a {type(value).__name__}; it must return a tensor"
            )
        return value if value.ndim == 0 else value.mean()

    def total(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of the terms."""
        parts = [
            losses[term.name] if term.weight == 1 else term.weight * losses[term.name]
            for term in self.terms
        ]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    def step(
        self, graph: Graph, frame: Frame, n: int, optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> StepResult:
        """One step of training."""
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers.values()):
            return self._search(graph, frame, n, optimizers)
        result, _ = self._differentiate(graph, frame, n, optimizers)
        self.precision.step(*optimizers.values())
        return result

    def _differentiate(
        self, graph: Graph, frame: Frame, n: int, optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> tuple[StepResult, torch.Tensor]:
        """Forward and backward: what there is to report, and what was minimised."""
        for optimizer in optimizers.values():
            forget_gradients(optimizer)
        with self.precision.forward():
            done = graph(frame)
            losses = self.losses(done)
            loss = self.total(losses)
        _check(loss)
        self.precision.backward(loss)
        result = self._result(losses, done, n)
        if self.part is not None:
            result = replace(result, losses=self.part.mean(result.losses), n=self.part.whole)
        return result, loss

    def _search(
        self, graph: Graph, frame: Frame, n: int, optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> StepResult:
        """A step of LBFGS, which evaluates the loss several times within it."""
        if self.precision.name == "fp16":
            raise InvalidInput("LBFGS cannot be used in fp16: take bf16, or another optimizer")
        kept: list[StepResult] = []

        def closure() -> torch.Tensor:
            result, loss = self._differentiate(graph, frame, n, optimizers)
            kept.append(result)
            return loss

        for optimizer in optimizers.values():
            optimizer.step(closure)  # type: ignore[arg-type]
        return kept[0]

    def finish_epoch(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        """Nothing more comes in this epoch: what waits for more batches must wait no longer."""

    def told(self) -> Any:
        """What the other processes of a group must know for a step, beside their part of it."""
        return None

    def hear(self, word: Any) -> None:
        """In one of the others, what the leader has told."""

    def state_dict(self) -> dict[str, Any]:
        """What has to be known to go on later, beside the states of modules and optimizers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""

    def evaluate(self, graph: Graph, frame: Frame, n: int) -> StepResult:
        """The losses of a batch, without training on it; in float32, as the model will be used."""
        done = graph(frame)
        return self._result(self.losses(done), done, n)

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """What a pass over validation data comes to: every term, and `loss`, their weighted sum."""
        return {**means, "loss": sum(term.weight * means[term.name] for term in self.terms)}

    def _result(self, losses: Mapping[str, torch.Tensor], frame: Frame, n: int) -> StepResult:
        means = {
            name: loss.detach() / max(n, 1) if self.sums[name] else loss.detach()
            for name, loss in losses.items()
        }
        return StepResult(means, frame, n)


def _check(loss: torch.Tensor) -> None:
    if not loss.requires_grad:
        raise InvalidInput(
            "the loss does not depend on any parameter of the model: check that neither the model "
            "nor the loss detaches its result"
        )
