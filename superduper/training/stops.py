"""Policies that end a training in order: for its loss, length or time, or a reached target."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from superduper.training.policies import EarlyStopping, Policy, check_watched
from superduper.training.values import mean_loss


class LossStop(Policy):
    """Ends the training when an epoch's loss is over `max_ratio` times the lowest one so far.

    Of a negative lowest loss, three times as much is as far above it as it is of a positive one of
    its size: 1 for -1, as 3 for 1.
    """

    def __init__(self, max_ratio: float = 3) -> None:
        self.max_ratio = max_ratio
        self.lowest = math.inf

    def epoch_finished(self, epoch: int, train_losses: Sequence[Any], **_: Any) -> None:
        """Compare the epoch's loss with the lowest one."""
        loss = mean_loss(train_losses)
        self.lowest = min(self.lowest, loss)
        ratio = self.max_ratio if self.lowest > 0 else 2 - self.max_ratio
        if loss > ratio * self.lowest:
            raise EarlyStopping(
                f"the loss of epoch {epoch} is {loss:g}, over {self.max_ratio:g} times the lowest, "
                f"{self.lowest:g}"
            )

    def state_dict(self) -> dict[str, Any]:
        """The lowest loss so far."""
        return {"lowest": self.lowest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.lowest = state["lowest"]


class NEpochs(Policy):
    """Ends the training after a number of epochs."""

    def __init__(self, n_epochs: int) -> None:
        self.n_epochs = n_epochs

    def epoch_started(self, epoch: int) -> None:
        """Stop before one epoch too many."""
        if epoch >= self.n_epochs:
            raise EarlyStopping(f"{self.n_epochs} epochs are done")


class TimeStop(Policy):
    """Ends the training after some seconds of it, also within an epoch.

    Time is counted over all calls that go on from one another.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.clock = clock
        self.spent_before = 0.0
        self._started = clock()

    def run_started(self) -> None:
        """Start the clock."""
        self._started = self.clock()

    def step_finished(self) -> None:
        """Stop, if it is time."""
        if self._spent() >= self.seconds:
            raise EarlyStopping(f"{self.seconds:g} seconds are over")

    def state_dict(self) -> dict[str, Any]:
        """The seconds spent so far."""
        return {"spent": self._spent()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.spent_before = state["spent"]

    def _spent(self) -> float:
        return self.spent_before + self.clock() - self._started


class TargetStop(Policy):
    """Ends the training when a metric of the validation has reached a value."""

    def __init__(self, metric: str, value: float, higher_is_better: bool = True) -> None:
        self.metric = metric
        # Not `value`: what has one gives it to every step.
        self.goal = value
        self.higher_is_better = higher_is_better

    def epoch_finished(self, metrics: Mapping[str, Any] | None = None) -> None:
        """Compare the metric with the value."""
        check_watched(metrics, self.metric)
        reached = (metrics or {})[self.metric]
        if reached >= self.goal if self.higher_is_better else reached <= self.goal:
            raise EarlyStopping(f"{self.metric} has reached {reached:g}")
