"""Policies with a value that changes from epoch to epoch; a training step is given the values.

`value` is the one in force during the epoch that is running.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from superduper.training.policies import Policy


class ValuePolicy(Policy):
    """Carries a `value`; by itself it never changes."""

    def __init__(self, initial: Any) -> None:
        self.value = initial


class Constant(ValuePolicy):
    """The same value throughout."""


class Exponential(ValuePolicy):
    """Times `multiplier` every `step_length` epochs, within `min_value` and `max_value`.

    With `floordiv=False` the value changes a little every epoch instead of in steps.
    """

    def __init__(
        self,
        initial: float,
        multiplier: float,
        step_length: int = 1,
        floordiv: bool = True,
        min_value: float = -math.inf,
        max_value: float = math.inf,
    ) -> None:
        super().__init__(float(initial))
        self.initial = float(initial)
        self.multiplier = multiplier
        self.step_length = step_length
        self.floordiv = floordiv
        self.min_value = min_value
        self.max_value = max_value

    def epoch_started(self, epoch: int) -> None:
        """Compute the epoch's value."""
        power = epoch // self.step_length if self.floordiv else epoch / self.step_length
        value = self.initial * self.multiplier**power
        self.value = min(max(value, self.min_value), self.max_value)


class Schedule(ValuePolicy):
    """Times a multiplier at each epoch that has one; what came before stays multiplied."""

    def __init__(self, initial: float, epoch2value_multiplier: Mapping[int, float]) -> None:
        super().__init__(float(initial))
        self.initial = float(initial)
        self.epoch2value_multiplier = dict(sorted(epoch2value_multiplier.items()))

    @classmethod
    def constant_multiplier(
        cls, initial: float, multiplier: float, epochs: Sequence[int]
    ) -> "Schedule":
        """The same multiplier at each of several epochs."""
        return cls(initial, dict.fromkeys(epochs, multiplier))

    def epoch_started(self, epoch: int) -> None:
        """Compute the epoch's value."""
        value = self.initial
        for first, multiplier in self.epoch2value_multiplier.items():
            if first <= epoch:
                value *= multiplier
        self.value = value


class Switch(ValuePolicy):
    """Another value from each epoch on that has one."""

    def __init__(self, initial: Any, epoch_to_value: Mapping[int, Any]) -> None:
        super().__init__(initial)
        self.initial = initial
        self.epoch_to_value = dict(sorted(epoch_to_value.items()))

    def epoch_started(self, epoch: int) -> None:
        """Look up the epoch's value."""
        reached = [value for first, value in self.epoch_to_value.items() if first <= epoch]
        self.value = reached[-1] if reached else self.initial


class LambdaEpoch(ValuePolicy):
    """What `function(epoch, *arguments)` returns."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        super().__init__(function(0, *arguments, **named))
        self.function = function
        self.arguments = arguments
        self.named = named

    def epoch_started(self, epoch: int) -> None:
        """Compute the epoch's value."""
        self.value = self.function(epoch, *self.arguments, **self.named)


class DecreasingOnPlateau(ValuePolicy):
    """Times `multiplier` when the training loss has not fallen for more than `patience` epochs.

    A loss has fallen if it is lower than the last that had by more than `atol`, or by more than the
    part `rtol` of its size; without either, if it is lower at all.
    """

    def __init__(
        self,
        *,
        initial: float,
        multiplier: float,
        patience: int,
        rtol: float | None = None,
        atol: float | None = None,
        min_value: float = 0.0,
    ) -> None:
        super().__init__(float(initial))
        self.multiplier = multiplier
        self.patience = patience
        self.rtol = rtol
        self.atol = 0.0 if atol is None and rtol is None else atol
        self.min_value = min_value
        self.margin = math.inf
        self.waited = 0

    def epoch_finished(self, train_losses: Sequence[Any]) -> None:
        """Compare the epoch's loss with the best one."""
        loss = mean_loss(train_losses)
        if loss < self.margin:
            by_atol = -math.inf if self.atol is None else loss - self.atol
            by_rtol = -math.inf if self.rtol is None else _less(loss, self.rtol)
            self.margin = max(by_atol, by_rtol)
            self.waited = 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.value = max(self.value * self.multiplier, self.min_value)
            self.waited = 0

    def state_dict(self) -> dict[str, Any]:
        """The value, and how long the loss has not fallen below what."""
        return {"value": self.value, "margin": self.margin, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.value, self.margin = state["value"], state["margin"]
        self.waited = state["waited"]


def _less(loss: float, part: float) -> float:
    """A loss less a part of its size: of a negative one, further from 0."""
    return loss * (1 - part) if loss > 0 else loss * (1 + part)


def mean_loss(train_losses: Sequence[Any]) -> float:
    """The mean of an epoch's losses, NaN of none; of several in a step, what is minimised.

    That is the mean of an array, and of a dict `loss` or else the sum.
    """
    totals = [_total(loss) for loss in train_losses]
    return math.fsum(totals) / len(totals) if totals else math.nan


def _total(loss: Any) -> float:
    if isinstance(loss, Mapping):
        return float(loss["loss"]) if "loss" in loss else sum(float(each) for each in loss.values())
    if getattr(loss, "ndim", 0):
        return float(loss.mean())
    return float(loss)
