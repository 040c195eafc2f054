"""A logger that keeps a run in the database, beside those of imputations."""

import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from superduper.training.policies import Policy
from superduper.training.ranking import is_cost
from superduper.training.run_logs import finite
from superduper.training.runs import Runs
from superduper.training.weights import weights_hash
from superduper.version import __version__

if TYPE_CHECKING:
    from superduper.training.engine import Engine


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
        self._latest: dict[str, float] = {}

    def run_started(self, engine: "Engine", epoch: int, step: int) -> None:
        """Begin a run, or go on with it."""
        if self.run is None:
            self.run = self.runs.begin(self._begun(engine))
        else:
            self.runs.reopen(self.run, epoch, step)
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

    def epoch_finished(
        self,
        epoch: int,
        step: int,
        train: Mapping[str, float],
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Add the epoch's row."""
        assert self.run is not None
        losses = {f"train_{name}": value for name, value in train.items()}
        measured = {name: float(value) for name, value in (metrics or {}).items()}
        self._latest = measured or losses
        self.runs.append(self.run, [finite({"epoch": epoch, "step": step, **losses, **measured})])

    def run_finished(self, engine: "Engine", reason: str) -> None:
        """Record how it ended."""
        assert self.run is not None
        higher = {name: not is_cost(name) for name in self._latest}
        self._open = False
        self.runs.finish(
            self.run,
            "succeeded",
            final_hash=_hash(engine),
            stopped=reason,
            metrics=finite(self._latest),
            higher_is_better=higher,
        )

    def note(self, record: Mapping[str, Any]) -> None:
        """Take over what a trainer's own record knows: hashes of data, settings, parent, test."""
        if self.run is None:
            return
        test = record["data"].get("test")
        fold = "test" if test is not None else "validate"
        known = {key: record[key] for key in ("data", "parent", "initial_hash")}
        if record["data"].get(fold) and record["data"][fold]["hash"]:
            known["scored"] = {"fold": fold, **record["data"][fold]}
        if record["test"]:
            known["metrics"] = record["test"]
        self.runs.update(self.run, **known)

    def close(self) -> None:
        """The training has ended; if not by itself, it failed."""
        if self._open and self.run is not None:
            self.runs.finish(self.run, "failed")
        self._open = False

    def state_dict(self) -> dict[str, Any]:
        """Which run it is."""
        return {"run": self.run, "latest": self._latest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a run."""
        self.run, self._latest = state["run"], dict(state["latest"])


def _hash(engine: "Engine") -> str:
    states = engine.graph.state_dict().items()
    return weights_hash(
        {f"{node}.{name}": value for node, state in states for name, value in state.items()}
    )
