"""What a fit's child tells its parent while it trains: progress, history, checkpoints."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superduper.errors import NotReady
from superduper.imputations.fitting.trainer import Summaries
from superduper.jobs.channel import Message
from superduper.training.checkpoints import Checkpoints
from superduper.training.objective import StepResult
from superduper.training.policies import Policy
from superduper.training.sources import Batch

if TYPE_CHECKING:
    from superduper.training.engine import Engine

Send = Callable[[Message], None]

REPORT_SECONDS = 0.2
# The most rows about steps that a run keeps: of longer ones, each row is the mean of several steps.
STEP_ROWS = 5_000
# Saving takes at most this part of the time.
SAVING_SHARE = 0.1


class Reporter(Policy):
    """Tells how far it is a few times a second, and after every validation.

    The rows about steps hold mean losses since the row before, within an epoch.
    """

    def __init__(self, send: Send, total: int, policies: Sequence[Policy] = ()) -> None:
        self.send = send
        self.total = total
        self._summaries = [each for each in policies if isinstance(each, Summaries)]
        self.interval = max(1, -(-total // STEP_ROWS))
        self._since: list[tuple[Mapping[str, Any], int]] = []
        self._rows: list[dict[str, Any]] = []
        self._last = 0.0

    def epoch_started(self) -> None:
        """Begin with no losses."""
        self._since = []

    def step_finished(self, epoch: int, step: int, batch: Batch, result: StepResult) -> None:
        """Note the losses, and report unless it was done a moment ago."""
        self._since.append((result.losses, batch.n))
        if step % self.interval == 0:
            self._rows.append({"epoch": epoch, "step": step, **_means(self._since)})
            self._since = []
        now = time.monotonic()
        if now - self._last >= REPORT_SECONDS:
            self._last = now
            self._send_rows({"epoch": epoch, "step": step})

    def validation_finished(
        self, epoch: int, step: int, train: Mapping[str, float], metrics: Mapping[str, float]
    ) -> None:
        """Report the row of an epoch."""
        losses = {f"train_{name}": value for name, value in train.items()}
        row = {"epoch": epoch, "step": step, **losses, **metrics}
        for each in self._summaries:
            row = {**each.latest, **row}
        self.send({"event": {"row": row, "of": self.total}})

    def run_finished(self, epoch: int, step: int) -> None:
        """Report the rest."""
        self._send_rows({"epoch": epoch, "step": step})

    def _send_rows(self, place: Mapping[str, int]) -> None:
        rows, self._rows = self._rows, []
        self.send({"event": {"step": {**place, "of": self.total}, "rows": rows}})

    def state_dict(self) -> dict[str, Any]:
        """The losses that are not in a row yet; the rows are sent before a state is kept."""
        return {"since": [[_floats(losses), n] for losses, n in self._since]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._since = [(losses, n) for losses, n in state["since"]]


def _floats(losses: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(loss) for name, loss in losses.items()}


def _means(since: list[tuple[Mapping[str, Any], int]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for losses, n in since:
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + float(loss) * n
    count = sum(n for _, n in since)
    return {name: total / count for name, total in sums.items()}


class Saver(Policy):
    """Leaves a checkpoint in a folder, for the parent to take, every so many seconds.

    The next one is not saved before the parent has taken, and so removed, the one before. It must
    come last, so that what it saves is whole.
    """

    def __init__(self, folder: Path, seconds: float, send: Send, reporter: Reporter) -> None:
        folder.mkdir()
        self.folder = folder
        self._saved = 0
        self.seconds = seconds
        self.send = send
        self.reporter = reporter
        self._due = time.monotonic() + seconds

    def step_finished(self, engine: "Engine", epoch: int, step: int) -> None:
        """Save, if it is time."""
        if time.monotonic() >= self._due and not any(self.folder.iterdir()):
            self._save(engine, epoch, step)

    def run_finished(self, engine: "Engine", epoch: int, step: int) -> None:
        """Save the end of a training that took its time: what is left is to publish it."""
        if time.monotonic() >= self._due:
            self._save(engine, epoch, step)

    def _save(self, engine: "Engine", epoch: int, step: int) -> None:
        began = time.monotonic()
        self.reporter.run_finished(epoch, step)
        self._saved += 1  # each into a folder of its own, which is the parent's from then on
        try:
            Checkpoints(self.folder / str(self._saved)).save(step, engine.state_dict())
        except NotReady as error:
            self.send({"event": {"unsaved": error.message}})
            raise
        self.send({"event": {"checkpoint": self._saved}})
        now = time.monotonic()
        if self.seconds:
            self._due = now + max(self.seconds, (now - began) / SAVING_SHARE)
