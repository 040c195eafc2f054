"""Runs of a user's own trainings, kept in the database."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pymongo.database import Database
from torch.utils.data import DataLoader, TensorDataset

from superduper.training import DatabaseLogger, Policy, Trainer, train_model
from superduper.training.runs import Runs
from tests.training.first_door import model_of, stream


def test_a_training_is_a_run_with_its_history(database: Database[Any]) -> None:
    log = DatabaseLogger(database["docs"], "mine")
    train_model(
        model_of(),
        stream(n_iters_per_epoch=3),
        n_epochs=2,
        lr=0.1,
        validate=lambda: {"accuracy": 0.5},
        log=log,
    )
    (run,) = Runs(database).list("docs")
    assert (run["name"], run["status"], run["stopped"]) == (
        "mine",
        "succeeded",
        "all epochs are done",
    )
    assert run["metrics"] == {"accuracy": 0.5} and run["initial_hash"] != run["final_hash"]
    assert run["versions"]["torch"] == torch.__version__ and run["seconds"] >= 0
    assert run["best"] == {"epoch": 0, "step": 3, "accuracy": 0.5}  # of equal ones, the first
    full = Runs(database).get(run["_id"])
    history, steps = full["history"], full["steps"]
    assert [row["epoch"] for row in history] == [0, 1] and history[0]["train_loss"] > 0
    assert [(row["epoch"], row["step"]) for row in steps] == [(n // 3, n + 1) for n in range(6)]
    assert sum(row["loss"] for row in steps[:3]) / 3 == pytest.approx(history[0]["train_loss"])


def test_one_that_goes_on_is_the_same_run(database: Database[Any], tmp_path: Path) -> None:
    class Trouble(Policy):
        def step_finished(self, step: int) -> None:
            if step == 5:
                raise OSError("the cable")

    def train(**policies: Any) -> None:
        log = DatabaseLogger(database["docs"])
        train_model(
            model_of(),
            stream(n_iters_per_epoch=3),
            n_epochs=3,
            lr=0.1,
            checkpoints_path=tmp_path,
            log=log,
            **policies,
        )

    with pytest.raises(OSError, match="the cable"):
        train(trouble=Trouble())
    assert Runs(database).list("docs")[0]["status"] == "failed"
    train()
    (run,) = Runs(database).list("docs")
    assert run["status"] == "succeeded"
    full = Runs(database).get(run["_id"])
    assert [row["epoch"] for row in full["history"]] == [0, 1, 2]
    assert [row["step"] for row in full["steps"]] == list(range(1, 10))
    train()  # there is nothing to train: the run stays as it ended
    assert Runs(database).get(run["_id"]) == full


def test_a_row_whose_checkpoint_was_not_written_comes_once(
    database: Database[Any], tmp_path: Path
) -> None:
    class Trouble(Policy):
        def epoch_finished(self, epoch: int) -> None:
            if epoch == 1 and trouble:
                raise OSError("the cable")

    def train() -> None:
        log = DatabaseLogger(database["docs"])
        batches = stream(n_iters_per_epoch=3)
        train_model(model_of(), batches, 3, 0.1, None, tmp_path, log=log, trouble=Trouble())

    trouble = True
    with pytest.raises(OSError, match="the cable"):
        train()
    (run,) = Runs(database).list("docs")
    assert [row["epoch"] for row in Runs(database).get(run["_id"])["history"]] == [0, 1]
    trouble = False
    train()
    full = Runs(database).get(run["_id"])
    assert [row["epoch"] for row in full["history"]] == [0, 1, 2]
    assert [row["step"] for row in full["steps"]] == list(range(1, 10))


def test_trainers_are_compared_where_their_test_data_are_equal(
    database: Database[Any], tmp_path: Path
) -> None:
    class Net(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.distributions.Categorical(logits=super().forward(x))

    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), 16)
    for name, n_epochs in (("short", 1), ("long", 8)):
        torch.manual_seed(0)
        net = Net(4, 2)
        Trainer(
            loader,
            loader,
            net,
            torch.optim.Adam(net.parameters(), 0.05),
            {"model_dir": str(tmp_path / name), "n_epochs": n_epochs, "seed": 1},
            test_loader=loader,
            policies=[DatabaseLogger(database["docs"], name)],
        ).train()
    runs = {run["name"]: run for run in Runs(database).list("docs")}
    assert runs["long"]["data"]["test"]["hash"] and runs["long"]["seed"] == 1
    for run in runs.values():
        record = json.loads((tmp_path / run["name"] / "run.json").read_text())
        hashes = ("initial_hash", "final_hash")
        assert [run[name] for name in hashes] == [record[name] for name in hashes]
        assert run["settings"]["save_interval"] == 1 and run["settings"]["watch"] == "log_prob"
    ranked = Runs(database).highscores("docs", "log_prob")
    assert Runs(database).highscores("docs") == ranked  # it is what they watched
    assert [row["name"] for row in ranked] == ["long", "short"]
    assert [row["run"] for row in ranked] == [runs["long"]["_id"], runs["short"]["_id"]]
    assert {row["test_hash"] for row in ranked} == {runs["long"]["data"]["test"]["hash"]}


def test_an_epoch_that_was_not_over_has_no_row_yet(database: Database[Any]) -> None:
    """Its last step was saved, its row written, and then its worker was killed."""
    runs = Runs(database)
    earlier, run = (runs.begin({"collection": "docs", "job": "j"}) for _ in range(2))
    rows = [{"epoch": epoch, "step": 10 * epoch} for epoch in range(3)]
    steps = [{"step": step} for step in (9, 10, 20, 21)]
    runs.append(earlier, rows, steps)
    runs.take_over(run, earlier, 1, 20)
    found = runs.get(run)
    assert found["history"] == rows[:2]
    assert found["steps"] == steps[:3]
    runs.reopen(earlier, 1, 20)
    found = runs.get(earlier)
    assert (found["history"], found["steps"]) == (rows[:2], steps[:3])
