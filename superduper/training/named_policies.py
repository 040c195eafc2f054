"""A user's policies, by name, told of a run in the words of `train_model`.

Beside the events of `Policy` they hear of `train_step_started(epoch, iteration)` and
`train_step_finished(epoch, iteration, loss)`. `epoch` is the number of the present epoch in every
event, counted from 0.
"""

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy
import torch

from superduper.training.objective import StepResult
from superduper.training.policies import EVENTS, Policy, StopRun, handlers_of

if TYPE_CHECKING:
    from superduper.training.engine import Engine

_STEPS = ("train_step_started", "train_step_finished")
_NOTHING = object()


class NamedPolicies(Policy):
    """Passes a run's events on to policies, in their order, and keeps their states by name.

    One that ends the run does not keep the others from hearing of the same event.
    """

    def __init__(
        self, policies: Mapping[str, Policy], measured: bool, *, first_epoch: int = 0
    ) -> None:
        self.policies = dict(policies)
        self.measured = measured
        # What the first epoch is called once it has been trained: a trainer counts from 1.
        self.first_epoch = first_epoch
        self.train_losses: list[Any] = []
        # The policies' values while an epoch is running: one may change its value at the end.
        self._in_force: dict[str, Any] = {}
        self._handlers: dict[str, list[Callable[..., None]]] = {
            event: handlers_of(list(self.policies.values()), event) for event in EVENTS + _STEPS
        }
        self._memories = {name: _Memory(policy) for name, policy in self.policies.items()}

    def values(self) -> dict[str, Any]:
        """The values that a training step is given."""
        return {
            name: policy.value for name, policy in self.policies.items() if hasattr(policy, "value")
        }

    def run_started(self, **arguments: Any) -> None:
        """Pass it on."""
        self._tell("run_started", arguments)

    def epoch_started(self, **arguments: Any) -> None:
        """Pass it on."""
        self.train_losses = []
        self._tell("epoch_started", arguments)

    def step_started(self, engine: "Engine", **arguments: Any) -> None:
        """Pass it on, in both vocabularies."""
        arguments |= {"engine": engine, "iteration": engine.cursor.batch}
        self._tell("step_started", arguments)
        self._tell("train_step_started", arguments)

    def step_finished(self, engine: "Engine", result: StepResult, **arguments: Any) -> None:
        """Pass it on, in both vocabularies."""
        loss = _loss_of(result)
        self.train_losses.append(loss)
        arguments |= {"engine": engine, "result": result, "loss": loss}
        arguments["iteration"] = engine.cursor.batch - 1
        self._tell("step_finished", arguments)
        self._tell("train_step_finished", arguments)

    def validation_started(self, epoch: int, **arguments: Any) -> None:
        """Pass it on."""
        self._in_force = self.values()
        arguments |= {"epoch": epoch - 1 + self.first_epoch, "train_losses": self.train_losses}
        self._tell("validation_started", arguments)

    def validation_finished(self, epoch: int, **arguments: Any) -> None:
        """Pass it on."""
        self._tell("validation_finished", {**arguments, **self._of_epoch(epoch, arguments)})

    def epoch_finished(self, epoch: int, **arguments: Any) -> None:
        """Pass it on."""
        self._tell("epoch_finished", {**arguments, **self._of_epoch(epoch, arguments)})

    def run_finished(self, **arguments: Any) -> None:
        """Pass it on."""
        self._tell("run_finished", arguments)

    def close(self) -> None:
        """Close what policies have open, however the run has ended."""
        for policy in self.policies.values():
            if hasattr(policy, "close"):
                policy.close()

    def _of_epoch(self, epoch: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "epoch": epoch - 1 + self.first_epoch,
            "train_losses": self.train_losses,
            "policies": self._in_force,
            "metrics": arguments["metrics"] if self.measured else None,
        }

    def _tell(self, event: str, arguments: Mapping[str, Any]) -> None:
        stop: StopRun | None = None
        for handler in self._handlers[event]:
            try:
                handler(**arguments)
            except StopRun as raised:
                stop = stop or raised
        if stop is not None:
            raise stop

    def state_dict(self) -> dict[str, Any]:
        """The losses of the present epoch, and the policies' states."""
        return {
            "train_losses": [_kept(loss) for loss in self.train_losses],
            "policies": {name: memory.state_dict() for name, memory in self._memories.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; a policy that was not there before starts anew."""
        self.train_losses = [_given(loss) for loss in state["train_losses"]]
        for name, memory in self._memories.items():
            if name in state["policies"]:
                memory.load_state_dict(state["policies"][name])


def _loss_of(result: StepResult) -> Any:
    """What the step of a model of its own returned, or else its losses as numbers."""
    if "loss" in result.frame:
        return result.frame["loss"]
    losses = {name: float(loss) for name, loss in result.losses.items()}
    return losses["loss"] if list(losses) == ["loss"] else losses


class _Memory:
    """What a policy has to remember: its own state, or else the attributes that have changed.

    Attributes count that are numbers, texts, tensors, or lists, tuples and dicts of these.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._own = type(policy).state_dict is not Policy.state_dict
        self._at_first = {} if self._own else copy.deepcopy(self._attributes())
        self._changed: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """The policy's state."""
        if self._own:
            return self.policy.state_dict()
        now = self._attributes()
        self._changed |= {
            name for name in now if not _equal(now[name], self._at_first.get(name, _NOTHING))
        }
        return {name: value for name, value in now.items() if name in self._changed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the policy its state."""
        if self._own:
            self.policy.load_state_dict(state)
            return
        self._changed |= set(state)
        vars(self.policy).update(state)

    def _attributes(self) -> dict[str, Any]:
        simple = {name: _simple(value) for name, value in vars(self.policy).items()}
        return {name: value for name, value in simple.items() if value is not _NOTHING}


def _simple(value: Any) -> Any:
    """A value as a checkpoint can keep it, or else `_NOTHING`."""
    if isinstance(value, numpy.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor):
        return value
    if type(value) in (list, tuple):
        parts = [_simple(each) for each in value]
        return _NOTHING if any(part is _NOTHING for part in parts) else type(value)(parts)
    if type(value) is dict and all(isinstance(key, str | int) for key in value):
        items = {key: _simple(each) for key, each in value.items()}
        return _NOTHING if any(part is _NOTHING for part in items.values()) else items
    return _NOTHING


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, torch.Tensor) or isinstance(other, torch.Tensor):
        return value is other
    return type(value) is type(other) and bool(value == other)


def _kept(loss: Any) -> Any:
    if isinstance(loss, Mapping):
        return {name: _kept(value) for name, value in loss.items()}
    return torch.from_numpy(loss) if isinstance(loss, numpy.ndarray) else loss


def _given(loss: Any) -> Any:
    if isinstance(loss, Mapping):
        return {name: _given(value) for name, value in loss.items()}
    return loss.numpy() if isinstance(loss, torch.Tensor) else loss
