"""A logger that keeps a run in the database, beside those of imputations."""

import platform
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from superduper.training.objective import StepResult
from superduper.training.policies import Policy
from superduper.training.ranking import is_better, is_cost
from superduper.training.run_logs import finite
from superduper.training.runs import Runs
from superduper.training.weights import weights_hash
from superduper.version import __version__

if TYPE_CHECKING:
    from superduper.training.engine import Engine

WRITE_SECONDS = 2.0


class DatabaseLogger(Policy):
    """Keeps a run among `docs.runs()`: `train_model(..., log=DatabaseLogger(docs))`.

    `docs` is a collection of this process, or pymongo's own. A training that goes on from a
    checkpoint goes on with the run that it began.
    """

    def __init__(self, docs: Any, name: str = "") -> None:
        self.runs = Runs(docs.database)
        self.collection = docs.name
        self.name = name
        self.run: str | None = None
        self._open = False
        self._epoch = -1  # the latest that has a row
        self._latest: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._steps: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
        self._told = 0.0

    def run_started(self, engine: "Engine") -> None:
        """Begin a run; one that goes on is open again once there is something to train."""
        if self.run is None:
            self.run = self.runs.begin(self._begun(engine))
            self._open = True

    def _begun(self, engine: "Engine") -> dict[str, Any]:
        return {
            "collection": self.collection,
            "imputation": None,
            "name": self.name,
            "job": None,
            "seed": engine.plan.seed,
            "settings": {"watch": "loss"},
            "initial_hash": _hash(engine),
            "device": str(next((each.device for each in engine.graph.parameters()), "cpu")),
            "versions": {
                "superduper": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }

    def step_finished(self, epoch: int, step: int, result: StepResult) -> None:
        """Note the step's losses; they are written every few seconds."""
        if not self._open:
            assert self.run is not None
            self.runs.reopen(self.run, self._epoch, step - 1)
            self._open = True
        self._steps.append(({"epoch": epoch, "step": step}, result.losses))
        if time.monotonic() - self._told >= WRITE_SECONDS:
            self._write()

    def epoch_finished(
        self,
        epoch: int,
        step: int,
        train: Mapping[str, float],
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Add the epoch's row."""
        losses = {f"train_{name}": value for name, value in train.items()}
        measured = {name: float(value) for name, value in (metrics or {}).items()}
        row = {"epoch": epoch, "step": step, **losses, **measured}
        self._epoch, self._latest = epoch, measured or losses
        watch = next(iter(self._latest))
        if is_better(row[watch], self._best.get(watch), not is_cost(watch)):
            self._best = {"epoch": epoch, "step": step, **self._latest}
        self._write([finite(row)])

    def _write(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        assert self.run is not None
        # Only now are losses numbers: to ask a GPU for one at each step would keep it waiting.
        steps = [
            finite({**place, **{name: float(loss) for name, loss in losses.items()}})
            for place, losses in self._steps
        ]
        self._steps, self._told = [], time.monotonic()
        self.runs.append(self.run, rows, steps)

    def run_finished(self, engine: "Engine", reason: str) -> None:
        """Record how it ended."""
        assert self.run is not None
        self._open = False
        self.runs.finish(
            self.run,
            "succeeded",
            final_hash=_hash(engine),
            stopped=reason,
            metrics=finite(self._latest),
            best=finite(self._best) or None,
            settings={"watch": next(iter(self._latest), "loss")},
            higher_is_better={name: not is_cost(name) for name in self._latest},
        )

    def note(self, record: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Take over what a trainer's own record knows: hashes, settings, parent, test."""
        if self.run is None:
            return
        test = record["data"].get("test")
        fold = "test" if test is not None else "validate"
        known = {key: record[key] for key in ("data", "parent", "initial_hash", "final_hash")}
        known["settings"] = {**config, "watch": next(iter(self._latest), "loss")}
        if record["data"].get(fold) and record["data"][fold]["hash"]:
            known["scored"] = {"fold": fold, **record["data"][fold]}
        if record["test"]:
            known["metrics"] = record["test"]
        self.runs.update(self.run, **known)

    def close(self) -> None:
        """The training has ended; if not by itself, it failed."""
        if self._open and self.run is not None:
            self._write()
            self.runs.finish(self.run, "failed")
        self._open = False

    def state_dict(self) -> dict[str, Any]:
        """Which run it is, and how far it is; what is not written yet is written first."""
        if self._steps:
            self._write()
        return {
            "run": self.run,
            "epoch": self._epoch,
            "latest": self._latest,
            "best": self._best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a run."""
        self.run, self._epoch = state["run"], state["epoch"]
        self._latest, self._best = dict(state["latest"]), dict(state["best"])


def _hash(engine: "Engine") -> str:
    states = engine.graph.state_dict().items()
    return weights_hash(
        {f"{node}.{name}": value for node, state in states for name, value in state.items()}
    )
