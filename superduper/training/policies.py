"""Policies follow a run through its events, and may end it.

A policy overrides the events it cares about and takes only the arguments it needs: of those listed
here, it is given the ones its signature names. Raising `StopRun` ends the run in order: the epoch
is validated and every policy hears of it first. Any other exception fails the run.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from superduper.errors import InvalidInput, UserCodeError
from superduper.training.metrics import is_elsewhere
from superduper.training.objective import StepResult
from superduper.training.ranking import improves
from superduper.training.sources import Batch
from superduper.training.weights import copy_of_state

if TYPE_CHECKING:
    from superduper.training.engine import Engine

EVENTS = (
    "run_started",
    "epoch_started",
    "step_started",
    "step_finished",
    "validation_started",
    "validation_finished",
    "epoch_finished",
    "run_finished",
)


_REST = inspect.Parameter.VAR_POSITIONAL


class StopRun(Exception):
    """Raised by a policy to end the run in order; the argument is the reason."""


class EarlyStopping(StopRun):
    """Raised by a user's policy to end the run in order: the class, or one with a reason."""


class Policy:
    """Follows a run; every event does nothing until it is overridden.

    | event | arguments beside `engine`, `epoch`, `step` |
    | --- | --- |
    | `run_started`, `epoch_started`, `validation_started` | |
    | `step_started` | `batch` |
    | `step_finished` | `batch`, `result` |
    | `validation_finished`, `epoch_finished` | `train`, `metrics` |
    | `run_finished` | `reason` |

    `epoch` counts the epochs before this one while it runs, and the completed ones after it;
    `step` counts completed steps. `train` holds the epoch's mean training losses, `metrics` what
    validation found. Validation also happens once before the first step, with `epoch=0`.
    """

    # A base that takes anything lets an override name only what it needs, for type checkers too.

    def run_started(self, *_: Any, **arguments: Any) -> None: ...

    def epoch_started(self, *_: Any, **arguments: Any) -> None: ...

    def step_started(self, *_: Any, **arguments: Any) -> None: ...

    def step_finished(self, *_: Any, **arguments: Any) -> None: ...

    def validation_started(self, *_: Any, **arguments: Any) -> None: ...

    def validation_finished(self, *_: Any, **arguments: Any) -> None: ...

    def epoch_finished(self, *_: Any, **arguments: Any) -> None: ...

    def run_finished(self, *_: Any, **arguments: Any) -> None: ...

    def __repr__(self) -> str:
        shown = [
            f"{name}={value!r}"
            for name, value in vars(self).items()
            if not name.startswith("_") and _is_short(value)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def state_dict(self) -> dict[str, Any]:
        """What has to be known to go on later: plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


def _is_short(value: Any) -> bool:
    """Whether a value can be shown: a number, a text, nothing, or a dict of these."""
    if isinstance(value, Mapping):
        return all(_is_short(each) for each in value.values())
    return value is None or isinstance(value, bool | int | float | str)


def handlers_of(policies: Sequence[Policy], event: str) -> list[Callable[..., None]]:
    """The policies' methods for an event, those that override it, each taking any arguments."""
    return [
        _taking_what_it_names(getattr(policy, event))
        for policy in policies
        if getattr(type(policy), event, None) is not getattr(Policy, event, None)
    ]


def _taking_what_it_names(method: Callable[..., None]) -> Callable[..., None]:
    parameters = inspect.signature(method).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return method
    names = [parameter.name for parameter in parameters]
    needed = {parameter.name for parameter in parameters if parameter.default is parameter.empty}
    needed -= {parameter.name for parameter in parameters if parameter.kind is _REST}

    def call(**arguments: Any) -> None:
        if not needed <= arguments.keys():
            unknown = ", ".join(sorted(needed - arguments.keys()))
            raise InvalidInput(
                f"{method.__qualname__} names {unknown}: there are {', '.join(sorted(arguments))}"
            )
        method(**{name: arguments[name] for name in names if name in arguments})

    return call


class NaNStop(Policy):
    """Fails the run at the first loss that is no finite number, naming step and records.

    On a GPU losses are looked at every `interval` steps, since each look waits for the GPU.
    """

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._waiting: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []

    def step_finished(
        self, engine: "Engine", epoch: int, step: int, batch: Batch, result: StepResult
    ) -> None:
        """Look at the loss, now or with the next ones."""
        for loss in result.losses.values():
            if is_elsewhere(loss):
                self._waiting.append((epoch, step, batch.index, loss))
            elif not math.isfinite(loss):
                _fail(engine, epoch, step, batch.index, float(loss))
        if len(self._waiting) >= self.interval:
            self._look(engine)

    def validation_started(self, engine: "Engine") -> None:
        """Look at what is waiting before weights can be called good."""
        self._look(engine)

    def _look(self, engine: "Engine") -> None:
        waiting, self._waiting = self._waiting, []
        if waiting and not bool(torch.stack([loss for *_, loss in waiting]).isfinite().all()):
            for epoch, step, index, loss in waiting:
                if not math.isfinite(loss.item()):
                    _fail(engine, epoch, step, index, loss.item())


def _fail(engine: "Engine", epoch: int, step: int, index: torch.Tensor, loss: float) -> None:
    raise UserCodeError(
        f"the loss became {loss} at step {step} (epoch {epoch + 1}), on "
        f"{engine.stage.describe(index)}: lower the learning rate, or look for extreme or missing "
        "numbers in these"
    )


class BestWeights(Policy):
    """Keeps the weights that were best on validation data by the watched quantity."""

    def __init__(self, watch: str, higher_is_better: bool) -> None:
        self.watch = watch
        self.higher_is_better = higher_is_better
        self.best: dict[str, Any] | None = None
        self.weights: dict[str, dict[str, torch.Tensor]] = {}

    def validation_finished(
        self, engine: "Engine", epoch: int, step: int, metrics: Mapping[str, float]
    ) -> None:
        """Keep the present weights if they are the best so far."""
        check_watched(metrics, self.watch)
        if self.best is None or improves(metrics, self.best, self.watch, self.higher_is_better):
            self.best = {"epoch": epoch, "step": step, **metrics}
            self.weights = {
                name: copy_of_state(module) for name, module in engine.graph.modules.items()
            }

    def restore(self, engine: "Engine") -> None:
        """Put the best weights back into the graph."""
        engine.graph.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """The best so far, with its weights."""
        return {"best": self.best, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.best = state["best"]
        self.weights = dict(state["weights"])


class Patience(Policy):
    """Ends the run when the watched quantity was not better for `patience` validations."""

    def __init__(self, watch: str, higher_is_better: bool, patience: int) -> None:
        if patience < 1:
            raise InvalidInput(f"patience must be at least 1 validation, not {patience}")
        self.watch = watch
        self.higher_is_better = higher_is_better
        self.patience = patience
        self.best: dict[str, float] | None = None
        self.waited = 0

    def validation_finished(self, metrics: Mapping[str, float]) -> None:
        """Count validations without a new best."""
        check_watched(metrics, self.watch)
        if improves(metrics, self.best, self.watch, self.higher_is_better):
            self.best, self.waited = dict(metrics), 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            raise StopRun(f"{self.watch} was not better for {self.patience} epochs")

    def state_dict(self) -> dict[str, Any]:
        """What the best validation measured, and how long ago it was."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.best, self.waited = state["best"], state["waited"]


def check_watched(metrics: Mapping[str, Any] | None, watch: str) -> None:
    """Raise InvalidInput if validation does not measure what is watched."""
    measured = metrics or {}
    if watch not in measured:
        found = ", ".join(sorted(measured)) or "nothing"
        raise InvalidInput(f"cannot watch {watch!r}: validation measures {found}")
