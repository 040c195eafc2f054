"""A trainer that was broken off, killed, interrupted or out of room goes on to the same end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import config, parts, rows

from superduper import training as model_suite
from superduper.errors import InvalidInput, NotReady
from superduper.training.hashes import model_hash
from superduper.training.policies import Policy, StopRun
from superduper.training.stops import LossStop
from tests.small_disk import small_disk


class Stop(Exception):
    """Raised to break a run off."""


class BreakOff(Policy):
    """Breaks a run off after a step."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def step_finished(self, step: int) -> None:
        if step == self.at:
            raise Stop


@pytest.mark.parametrize("at", [1, 4, 5, 7, 14])
def test_a_run_broken_off_at_any_step_goes_on_to_the_same_end(tmp_path: Path, at: int) -> None:
    def make(folder: Path, at: int | None) -> model_suite.Trainer:
        made = parts(dropout=0.4)
        return model_suite.Trainer(
            **made,
            config=config(folder, checkpoint_interval=2, log_interval=2),
            schedulers=[torch.optim.lr_scheduler.ExponentialLR(made["optimizer"], 0.7)],
            policies=[BreakOff(at)],
        )

    straight = make(tmp_path / "a", None).train()
    with pytest.raises(Stop):
        make(tmp_path / "b", at).train()
    torch.manual_seed(99)  # going on does not depend on what is drawn meanwhile
    resumed = make(tmp_path / "b", None).train()
    assert resumed["final_hash"] == straight["final_hash"]
    assert rows(resumed) == rows(straight)

    def lines(name: str) -> list[Any]:
        read = (tmp_path / name / "run/metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "dur"} for line in read]

    assert lines("a") == lines("b")


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from trained import config, parts
from superduper import training as model_suite
from superduper.training.policies import Policy
import os, signal
class Kill(Policy):
    def step_finished(self, step):
        if step == 8:
            os.kill(os.getpid(), getattr(signal, sys.argv[3]))
made = parts(dropout=0.4)
model_suite.Trainer(
    **made, config=config(Path(sys.argv[2]), checkpoint_interval=3), policies=[Kill()]
).train()
"""


@pytest.mark.parametrize(("name", "step"), [("SIGKILL", 6), ("SIGINT", 8)])
def test_a_killed_program_loses_nothing(tmp_path: Path, name: str, step: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, os.path.dirname(__file__), str(tmp_path / "b"), name],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == -getattr(signal, name), ended.stderr
    assert (tmp_path / f"b/run/checkpoints/checkpoint-{step}").is_dir()
    if name == "SIGINT":
        assert "train again to go on" in ended.stderr
        assert json.loads((tmp_path / "b/run/run.json").read_text())["status"] == "interrupted"

    def finish(folder: Path) -> dict[str, Any]:
        made = parts(dropout=0.4)
        return model_suite.Trainer(
            **made, config=config(folder, checkpoint_interval=3), policies=[Policy()]
        ).train()

    assert finish(tmp_path / "b")["final_hash"] == finish(tmp_path / "a")["final_hash"]


def test_a_run_with_loader_workers_goes_on_to_the_same_end(tmp_path: Path) -> None:
    hashes = []
    for folder, epochs in (("a", [2]), ("b", [1, 2])):
        for n_epochs in epochs:
            made = parts(dropout=0.2, workers=1)
            trainer = model_suite.Trainer(
                **made, config=config(tmp_path / folder, n_epochs=n_epochs)
            )
            record = trainer.train()
        hashes.append(record["final_hash"])
    assert hashes[0] == hashes[1]


def test_a_finished_run_called_again_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = model_suite.Trainer(**parts(), config=config(tmp_path)).train()
    made = parts()
    capsys.readouterr()
    again = model_suite.Trainer(**made, config=config(tmp_path), policies=[]).train()
    said = f"{tmp_path}/run: nothing is left to train, all epochs are done\n"
    assert capsys.readouterr().out == said
    assert rows(again) == rows(first) and again["finished_at"] == first["finished_at"]
    assert model_hash(made["model"]) == first["final_hash"] == again["final_hash"]


def test_a_run_without_a_checkpoint_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    model_suite.Trainer(**parts(), config=config(tmp_path)).train()
    run = tmp_path / "run"
    for name, message in (("checkpoint-15", None), ("checkpoint-10", "are all damaged")):
        (run / "checkpoints" / name / "manifest.json").write_text("{")
        again = model_suite.Trainer(**parts(), config=config(tmp_path))
        if message is None:
            assert again.train()["status"] == "finished"  # from the one before
            (run / "checkpoints" / "checkpoint-15" / "manifest.json").unlink()
            continue
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        with pytest.raises(InvalidInput, match=message):
            again.train()
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InvalidInput, match="has no checkpoint to go on from"):
        model_suite.Trainer(**parts(), config=config(tmp_path)).train()
    assert len(list((run / "models").iterdir())) == 3


def test_a_run_that_a_policy_ended_stays_ended(tmp_path: Path) -> None:
    class Enough(Policy):
        def epoch_finished(self, epoch: int) -> None:
            if epoch == 2:
                raise StopRun("it is enough")

    def train() -> dict[str, Any]:
        trainer = model_suite.Trainer(
            **parts(), config=config(tmp_path, save_interval=5), policies=[Enough()]
        )
        return trainer.train()

    first = train()
    assert (first["epochs"], first["reason"]) == (2, "it is enough")
    assert [path.name for path in (tmp_path / "run/models").iterdir()] == ["epoch002.safetensors"]
    assert train()["epochs"] == 2


def test_a_policy_of_train_model_ends_a_trainers_run(tmp_path: Path) -> None:
    class WithLoss(model_suite.Trainer):
        def train_batch(self, *batch: Any) -> Any:
            n = len(batch[1])
            super().train_batch(*batch)
            return {"loss": (9.0 if self._records.history else 1.0) * n}

        def evaluate_batch(self, *batch: Any) -> Any:
            return {"right": len(batch[1])}

    trainer = WithLoss(**parts(), config=config(tmp_path), policies=[LossStop(3)])
    record = trainer.train()
    assert record["reason"] == "the loss of epoch 2 is 9, over 3 times the lowest, 1"


def test_an_interrupt_during_validation_is_heeded(tmp_path: Path) -> None:
    class Interrupt(Policy):
        def __init__(self, epoch: int | None) -> None:
            self.epoch = epoch

        def validation_finished(self, epoch: int) -> None:
            if epoch == self.epoch:
                os.kill(os.getpid(), signal.SIGINT)

    def train(epoch: int | None) -> Any:
        trainer = model_suite.Trainer(
            **parts(), config=config(tmp_path), policies=[Interrupt(epoch)]
        )
        return trainer.train()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after epoch 2, saved in .*; train again"):
        train(2)
    assert signal.getsignal(signal.SIGINT) is before
    assert train(None)["epochs"] == 3


@pytest.mark.parametrize("at", [6, 10, 12, 15])
def test_a_full_disk_is_told_of_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, at: int
) -> None:
    class Fill(Policy):
        def step_finished(self, step: int) -> None:
            if step == at and is_filling:
                disk.fill()

    def train(folder: Path) -> dict[str, Any]:
        trainer = model_suite.Trainer(**parts(), config=config(folder), policies=[Fill()])
        return trainer.train()

    is_filling = False
    straight = train(tmp_path / "a")
    with small_disk(tmp_path / "disk", 1) as disk:
        with pytest.raises(
            NotReady, match="No space left on device.*make room and (train|try) again"
        ):
            is_filling = True
            train(disk.path)
        disk.free()
        is_filling = False
        resumed = train(disk.path)
    assert resumed["final_hash"] == straight["final_hash"]
    assert rows(resumed) == rows(straight)
