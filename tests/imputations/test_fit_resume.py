"""A fit that is killed goes on from its checkpoint on another worker, and ends the same."""

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pymongo.database import Database

from superduper.errors import NotReady
from superduper.imputations.fitting.checkpoints import FitCheckpoints, OtherFit
from superduper.imputations.fitting.job import _Fit, fit
from superduper.imputations.fitting.reports import Reporter, Saver
from superduper.store.embedded import attach
from superduper.store.mongo import connect_mongo
from superduper.training.checkpoints import Checkpoints
from superduper.training.policies import EarlyStopping, Policy
from tests.imputations.fitting import Fitting, points
from tests.imputations.test_fit_training import InTurn, TwoLayers
from tests.small_disk import small_disk
from tests.waiting import until

Start = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def fitting(database: Database[Any]) -> Fitting:
    found = Fitting(database)
    found.insert(points(60), _fold="train")
    found.insert(points(20, 100, seed=1), _fold="valid")
    return found


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Fitting]]:
    """A store of its own, where no other test's worker takes the job; and its address."""
    with (
        contextlib.closing(attach(tmp_path_factory.mktemp("alone"))) as attachment,
        connect_mongo(attachment.address) as client,
    ):
        found = Fitting(client["alone"])
        found.insert(points(60), _fold="train")
        found.insert(points(20, 100, seed=1), _fold="valid")
        yield attachment.address, found


@pytest.fixture
def start_worker(alone: tuple[str, Fitting], tmp_path: Path) -> Iterator[Start]:
    """Starts real worker processes, and ends those that are left."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "superduper.imputations.work", alone[0], "alone"]
        seconds = {"SUPERDUPER_CHECKPOINT_SECONDS": "0.1", "SUPERDUPER_LEASE_SECONDS": "2"}
        with (tmp_path / f"worker{len(started)}.log").open("wb") as log:
            started.append(
                subprocess.Popen(command, env=os.environ | seconds, stdout=log, stderr=log)
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


class Unhurried(TwoLayers):
    """Takes its time, so that it can be killed in the middle."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(0.03)
        return super().forward(x)


class Enough(Policy):
    """Ends the training by a count of its own, which must come back with a checkpoint."""

    def __init__(self) -> None:
        self.heard = 0

    def step_finished(self) -> None:
        self.heard += 1

    def epoch_finished(self) -> None:
        if self.heard >= 240:
            raise EarlyStopping(f"{self.heard} steps are enough")


ENDS_AS = (
    *("final_hash", "initial_hash", "data", "history", "steps", "best", "metrics", "stopped"),
    "domain",
)


def test_killed_at_random_steps_it_ends_as_one_that_was_never_stopped(
    alone: tuple[str, Fitting], start_worker: Start
) -> None:
    """With dropout, shuffling, two optimizers, a schedule and a policy with a state."""
    _, fitting = alone
    fitting.register_all(Unhurried())
    fitting.register("trainer", "in_turn", InTurn)
    fitting.register("policy", "enough", Enough())
    fitting.register("model", "again", Unhurried())
    settings = {
        "trainer": {"name": "in_turn", "arguments": {"scale": 1.0}},
        "lr": {"name": "Exponential", "arguments": {"initial": 0.02, "multiplier": 0.99}},
        "policies": ({"name": "enough"},),
        "max_epochs": 100,
        "patience": 100,
        "out_of_domain": 0.1,
    }
    straight = fitting.fit(fitting.declare(**settings))
    assert straight["stopped"] == "240 steps are enough"
    fitting.imputations.delete(fitting.imputations.get("docs", "y_from_x"))

    record = fitting.declare(**settings, name="again", model="again")
    job = fitting.queue.put("fit", {"collection": "docs", "imputation": "again"})
    checkpoints = fitting.database["superduper.checkpoints"]
    reached = 0
    for _ in range(3):
        worker = start_worker()
        goal = reached + random.randint(5, 40)
        until(lambda goal=goal: _step(checkpoints) >= goal, what="a later checkpoint", seconds=120)
        worker.kill()
        worker.wait()
        reached = _step(checkpoints)
        assert checkpoints.count_documents({}) <= 3  # a kill may leave one that was to be pruned
    start_worker()
    ended = until(lambda: _ended(fitting, job), what="the end of the fit", seconds=180)
    assert ended["state"] == "succeeded", ended["error"]
    run = fitting.work.runs.get(ended["result"]["run"])

    assert {key: run[key] for key in ENDS_AS} == {key: straight[key] for key in ENDS_AS}
    kept = [
        fitting.registry.payload(fitting.registry.get("docs", "model", name, 2))["domain"]["blob"]
        for name in ("model", "again")
    ]
    assert run["domain"]["calibrated_on"] == 20 and kept[0] == kept[1]
    assert run["resumed_from"]["step"] >= reached > 0
    assert run["parent"] is not None and len(run["steps"]) == 240
    assert fitting.imputations.get("docs", record.name).active == 1
    until(lambda: checkpoints.count_documents({}) == 0, what="checkpoints that nobody needs to go")


def _step(checkpoints: Any) -> int:
    newest = checkpoints.find_one({}, sort=[("record.step", -1)])
    return 0 if newest is None else int(newest["record"]["step"])


def _ended(fitting: Fitting, job: str) -> Mapping[str, Any] | None:
    found = fitting.queue.get(job)
    return found if found["state"] not in ("queued", "running") else None


# What is kept -------------------------------------------------------------------------------------

OF = {"train": "a", "valid": "b", "test": "c", "model": "d"}


@pytest.fixture
def kept(fitting: Fitting, tmp_path: Path) -> FitCheckpoints:
    """The checkpoints of a job `j`, after the steps 1 to 4."""
    files = Checkpoints(tmp_path / "child", keep=9)
    for step in range(1, 5):
        path = files.save(step, {"at": step, "weight": torch.full((3,), float(step))})
        fitting.work.checkpoints.keep("j", "r", path, OF, 0)
    return fitting.work.checkpoints


def test_the_newest_two_are_kept_and_come_back(
    kept: FitCheckpoints, fitting: Fitting, tmp_path: Path
) -> None:
    found = kept.fetch("j", OF, tmp_path)
    assert found is not None and (found.step, found.run) == (4, "r")
    state = Checkpoints(tmp_path).latest()
    assert state is not None and state["at"] == 4 and state["weight"].tolist() == [4.0] * 3
    assert fitting.database["superduper.checkpoints.files"].count_documents({}) == 4
    assert kept.fetch("another", OF, tmp_path) is None
    kept.forget("j")
    assert kept.fetch("j", OF, tmp_path) is None
    assert fitting.database["superduper.checkpoints.chunks"].count_documents({}) == 0


@pytest.mark.parametrize("harm", ["chunk lost", "chunk altered", "record altered"])
def test_a_torn_newest_one_falls_back_to_the_one_before(
    kept: FitCheckpoints, fitting: Fitting, tmp_path: Path, harm: str
) -> None:
    records = fitting.database["superduper.checkpoints"]
    newest = records.find_one({"_id": "j/4"})
    assert newest is not None
    of_tensors = {"files_id": newest["blobs"]["tensors"]}
    chunks = fitting.database["superduper.checkpoints.chunks"]
    if harm == "chunk lost":
        chunks.delete_one(of_tensors)
    elif harm == "chunk altered":
        data = bytearray(chunks.find_one(of_tensors)["data"])  # type: ignore[index]
        data[-1] ^= 1
        chunks.update_one(of_tensors, {"$set": {"data": bytes(data)}})
    else:
        records.update_one({"_id": "j/4"}, {"$set": {"record.tensors": "0" * 64}})
    found = kept.fetch("j", OF, tmp_path)
    assert found is not None and found.step == 3


@pytest.mark.parametrize(
    ("what", "word"), [("train", "other train data"), ("model", "another mod")]
)
def test_one_of_other_data_or_another_model_is_refused_with_both_hashes(
    kept: FitCheckpoints, tmp_path: Path, what: str, word: str
) -> None:
    with pytest.raises(OtherFit, match=rf"{word}.*: its hash was {OF[what]}, is other now"):
        kept.fetch("j", {**OF, what: "other"}, tmp_path)


def test_a_fit_whose_data_have_changed_begins_anew_and_says_so(
    fitting: Fitting, tmp_path: Path
) -> None:
    fitting.register_all()
    record = fitting.declare(max_epochs=2)
    job = fitting.claim(record)
    path = Checkpoints(tmp_path).save(3, {})
    fitting.work.checkpoints.keep(job.id, "earlier", path, OF, 0)
    run = fitting.work.runs.get(fit(job, fitting.work)["run"])
    job.succeed({})
    assert run["status"] == "succeeded" and "resumed_from" not in run
    now = run["data"]["train"]["hash"]
    assert f"other train data: its hash was a, is {now} now" in run["not_resumed"]


def test_what_no_checkpoint_names_is_collected(
    kept: FitCheckpoints, fitting: Fitting, tmp_path: Path
) -> None:
    files = fitting.database["superduper.checkpoints.files"]
    job = fitting.queue.put("any", {})
    kept.keep(job, "r", Checkpoints(tmp_path).save(1, {}), OF, 0)
    fitting.database["superduper.checkpoints"].delete_one({"_id": "j/4"})  # a crash in between
    assert kept.collect(min_age_hours=1) == 0
    assert kept.collect(min_age_hours=0) == 2  # and the job `j` is over: what it had goes, too
    assert fitting.database["superduper.checkpoints"].distinct("record.job") == [job]
    assert files.count_documents({}) == 2


def test_a_full_disk_is_told_of_and_the_checkpoint_before_stays(
    kept: FitCheckpoints, fitting: Fitting, tmp_path: Path
) -> None:
    told: list[dict[str, Any]] = []
    saver = Saver(tmp_path / "saver", 0, told.append, Reporter(told.append, 1))
    (tmp_path / "saver" / "1").write_bytes(b"in the way, as a full disk is")
    with pytest.raises(NotReady, match="step 7 could not be saved .* the one before it is whole"):
        saver._save(_Engine(), 1, 7)  # type: ignore[arg-type]
    event = told[-1]["event"]
    fitting.register_all()
    record = fitting.declare()
    job = fitting.claim(record)
    with pytest.raises(NotReady, match="step 7"):  # which is tried again, from step 4
        _Fit(job, fitting.work, record)._on_event(event)
    job.succeed({})
    found = kept.fetch("j", OF, tmp_path)
    assert found is not None and found.step == 4


def test_a_disk_that_fills_up_in_a_fit_costs_it_nothing(
    fitting: Fitting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fill(Policy):
        """Fills the disk that the fit's process has its files on, until there is a larger one."""

        def __init__(self, there_is_room: str) -> None:
            self.there_is_room = there_is_room

        def step_finished(self, step: int) -> None:
            if step >= 6 and not os.path.exists(self.there_is_room):
                with open("filler", "ab") as file, contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(65_536))

    monkeypatch.setenv("SUPERDUPER_CHECKPOINT_SECONDS", "0")
    there_is_room = tmp_path / "room"
    fitting.register_all(model=Unhurried())
    fitting.register("policy", "fill", Fill(str(there_is_room)))
    record = fitting.declare(policies=("fill",), max_epochs=3)
    job = fitting.claim(record)
    with small_disk(tmp_path / "disk", 40) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
        monkeypatch.setenv("SUPERDUPER_CACHE", str(disk.path / "cache"))
        with pytest.raises(NotReady, match="could not be saved.*No space left on device"):
            fit(job, fitting.work)
        there_is_room.touch()
        run = fitting.work.runs.get(fit(job, fitting.work)["run"])
    job.succeed({})
    assert run["status"] == "succeeded" and run["resumed_from"]["step"] >= 1


class _Engine:
    """As much of an engine as is saved."""

    def state_dict(self) -> dict[str, Any]:
        return {}
