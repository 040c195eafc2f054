"""Policies that keep what a trainer's run measured, and the weights of its epochs."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from superduper.training.batch_results import Results, flattened, mean_over
from superduper.training.checkpoints import Checkpoints
from superduper.training.policies import Policy
from superduper.training.run_folder import RunFolder
from superduper.training.run_logs import JsonLines, Row, Table, TensorBoard, write_csv
from superduper.training.trainer_objective import BatchObjective

if TYPE_CHECKING:
    from superduper.training.engine import Engine

logger = logging.getLogger("superduper.training.run")

Summarize = Callable[[list[Results], list[Results], int], Any]


class RunRecords(Policy):
    """Sums up every epoch and writes it wherever a run is followed."""

    def __init__(
        self,
        folder: RunFolder,
        objective: BatchObjective,
        summarize: Summarize,
        log_interval: int | None,
    ) -> None:
        self.folder = folder
        self.objective = objective
        self.summarize = summarize
        self.log_interval = log_interval
        self.history: list[Row] = []
        self.tensorboard = TensorBoard(folder.tensorboard)
        self._json_lines: JsonLines | None = None
        self._table = Table()
        self._logged = (0, 0)
        self._elapsed = 0.0
        self._began = time.monotonic()

    def run_started(self, engine: "Engine", epoch: int, step: int) -> None:
        """Go on with the files where the run goes on."""
        self._began = time.monotonic()
        self.tensorboard = TensorBoard(self.folder.tensorboard, epoch, step)
        self._json_lines = JsonLines(self.folder.json_lines, epoch, step)
        logger.info("training starts after epoch %s, step %s", epoch, step)

    def epoch_started(self) -> None:
        """Forget the epoch before."""
        self.objective.begin_training()
        self._logged, self._elapsed, self._began = (0, 0), 0.0, time.monotonic()

    def validation_started(self) -> None:
        """Forget the validation before."""
        self.objective.begin_validation()

    def step_finished(self, epoch: int, step: int) -> None:
        """Log the means over the latest steps, if it is time."""
        if self.log_interval is None or step % self.log_interval:
            return
        count, n = self._logged
        results = self.objective.train_results
        self._logged = (len(results), self.objective.train_n)
        means = mean_over(results[count:], self.objective.train_n - n)
        row: Row = {"epoch": epoch + 1, "step": step}
        row |= {f"train_{key}": value for key, value in means.items()}
        self._write({"event": "step", **row})
        self.tensorboard.add(TensorBoard.STEPS, means, step)
        logger.info("%s", _line(row))

    def epoch_finished(
        self, epoch: int, step: int, train: Mapping[str, float], metrics: Mapping[str, float]
    ) -> None:
        """Sum the epoch up, print it and write it."""
        objective = self.objective
        summary = self.summarize(objective.train_results, objective.validate_results, epoch)
        shown = flattened(summary or {})
        seconds = round(time.monotonic() - self._began + self._elapsed, 4)
        row: Row = {"epoch": epoch, "step": step}
        row |= {f"train_{key}": value for key, value in train.items()}
        row |= {f"validate_{key}": value for key, value in metrics.items()}
        row |= {**shown, "dur": seconds}
        self.history.append(row)
        self._table.print({"epoch": epoch, **shown, "dur": seconds})
        self._write({"event": "epoch", **row})
        write_csv(self.folder.csv, self.history)
        logger.info("%s", _line(row))
        # What was summed up need not be in the checkpoint.
        objective.begin_training()
        self._logged = (0, 0)

    def run_finished(self, reason: str) -> None:
        """Say why it ended."""
        logger.info("training ended: %s", reason)

    def close(self) -> None:
        """Close the files."""
        self.tensorboard.close()
        if self._json_lines is not None:
            self._json_lines.close()

    def _write(self, row: Row) -> None:
        if self._json_lines is not None:
            self._json_lines.add(row)

    def state_dict(self) -> dict[str, Any]:
        """The history; the sums of the epoch that is being trained are the objective's."""
        return {
            "history": [dict(row) for row in self.history],
            "logged": list(self._logged),
            "elapsed": time.monotonic() - self._began + self._elapsed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.history = [dict(row) for row in state["history"]]
        count, n = state["logged"]
        self._logged, self._elapsed = (count, n), state["elapsed"]


def _line(row: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
    )


class EpochWeights(Policy):
    """Keeps the weights after every `interval` epochs, and always after the last."""

    def __init__(self, folder: RunFolder, model: Any, interval: int, n_epochs: int) -> None:
        self.folder = folder
        self.model = model
        self.interval = interval
        self.n_epochs = n_epochs
        self._done = 0

    def epoch_finished(self, epoch: int) -> None:
        """Save, if it is time."""
        self._done = epoch
        if epoch % self.interval == 0:
            self.folder.save_epoch(self.model, epoch, self.n_epochs)

    def run_finished(self) -> None:
        """Save the last epoch, if it was not its turn."""
        if self._done and self._done not in self.folder.epochs():
            self.folder.save_epoch(self.model, self._done, self.n_epochs)

    def state_dict(self) -> dict[str, Any]:
        """The epochs that are done."""
        return {"done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._done = state["done"]


class FirstCheckpoint(Policy):
    """Saves what a run begins with, so that one that is killed early begins with the same."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def run_started(self, engine: "Engine", step: int) -> None:
        """Save, if nothing was trained yet."""
        if step == 0:
            self.checkpoints.save(0, engine.state_dict())


class Schedulers(Policy):
    """Steps torch's learning-rate schedulers after every epoch."""

    def __init__(self, schedulers: Sequence[Any]) -> None:
        self.schedulers = tuple(schedulers)

    def epoch_finished(self) -> None:
        """A step of every scheduler."""
        for scheduler in self.schedulers:
            scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of all."""
        return {"schedulers": [scheduler.state_dict() for scheduler in self.schedulers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for scheduler, kept in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(kept)
