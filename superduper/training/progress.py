"""Policies for the one who waits: a progress bar, and where the time goes."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from superduper.training.objective import StepResult
from superduper.training.policies import Policy

if TYPE_CHECKING:
    from superduper.training.engine import Engine


SHOW_SECONDS = 0.1


class TQDM(Policy):
    """A progress bar for each epoch, with the last loss if `loss`.

    Where there is no terminal and no notebook, each epoch that is trained is one line on stderr.
    """

    def __init__(self, loss: bool = True) -> None:
        self.loss = loss
        self._bar: Any = None
        self._epoch = 0
        self._steps = 0  # that are not shown yet
        self._latest: Any = None
        self._began = self._shown = 0.0

    def epoch_started(self, engine: "Engine", epoch: int) -> None:
        """Begin the epoch's bar."""
        self._begin(engine, epoch)

    def step_finished(
        self, engine: "Engine", epoch: int, result: StepResult, loss: Any = None
    ) -> None:
        """Go one step further; it is shown a few times a second."""
        if self._bar is None:  # the training goes on within an epoch
            self._begin(engine, epoch)
        self._steps += 1
        self._latest = result.losses if loss is None else loss
        now = time.monotonic()
        if now - self._shown >= SHOW_SECONDS and not self._bar.disable:
            self._show()
            self._shown = now

    def _show(self) -> None:
        if self.loss and self._latest is not None:
            self._bar.set_postfix_str(f"loss: {_short(self._latest)}", refresh=False)
        self._bar.update(self._steps)
        self._steps = 0

    def _tell(self) -> None:
        seconds = time.monotonic() - self._began
        loss = f", loss: {_short(self._latest)}" if self.loss else ""
        text = f"Epoch {self._epoch}: {self._steps} steps in {seconds:.1f} s{loss}"
        print(text, file=sys.stderr, flush=True)

    def epoch_finished(self) -> None:
        """End the bar."""
        self.close()

    def validation_started(self) -> None:
        """End the bar."""
        self.close()

    def _begin(self, engine: "Engine", epoch: int) -> None:
        try:
            total = len(engine.stage.source)
        except TypeError:  # batches that a function yields
            total = None
        self._epoch, self._steps, self._latest = epoch, 0, None
        self._began = self._shown = time.monotonic()
        self._bar = tqdm(desc=f"Epoch {epoch}", total=total, unit="step", disable=None)

    def close(self) -> None:
        """End the bar."""
        if self._bar is None:
            return
        if not self._bar.disable:
            self._show()
            self._bar.close()
        elif self._steps:
            self._tell()
        self._bar = None

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def _short(loss: Any) -> str:
    if isinstance(loss, torch.Tensor):
        loss = loss.item()
    if isinstance(loss, Mapping) and set(loss) == {"loss"}:
        return _short(loss["loss"])
    if isinstance(loss, Mapping):
        return " ".join(f"{name} {_short(value)}" for name, value in loss.items())
    return f"{loss:.4g}" if isinstance(loss, float) else str(loss)


class TimeProfiler(Policy):
    """Prints where an epoch's time went: batches, steps, validation; in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._reset()

    def _reset(self) -> None:
        now = self.clock()
        self._started = self._last = now
        self._batches = self._steps = 0.0
        self._n = 0

    def epoch_started(self) -> None:
        """Start the clocks."""
        self._reset()

    def train_step_started(self) -> None:
        """A batch has come."""
        now = self.clock()
        self._batches += now - self._last
        self._last = now

    def train_step_finished(self) -> None:
        """A step is done."""
        now = self.clock()
        self._steps += now - self._last
        self._last, self._n = now, self._n + 1

    def epoch_finished(self, epoch: int) -> None:
        """Print the epoch."""
        now, n = self.clock(), max(self._n, 1)
        print(
            f"Epoch {epoch}: {now - self._started:.3f} s; batches {self._batches:.3f} s, "
            f"steps {self._steps:.3f} s, validation {now - self._last:.3f} s; "
            f"each of {self._n} steps: batch {self._batches / n:.6f} s, "
            f"step {self._steps / n:.6f} s",
            flush=True,
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}
