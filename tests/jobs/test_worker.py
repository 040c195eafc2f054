"""Workers are killed, paused, cut off and stopped; every job still ends, and ends once."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.uri_parser import parse_uri

from superduper.errors import ChildDied, UserCodeError
from superduper.jobs.queue import Queue, RunningJob
from superduper.jobs.worker import Handler, Service, Worker, alive_workers
from tests.jobs.proxy import Proxy
from tests.jobs.waiting import is_gone
from tests.waiting import until

Store = Database[dict[str, Any]]
Process = subprocess.Popen[bytes]
StartWorker = Callable[..., Process]
SCRIPT = Path(__file__).with_name("work.py")


@pytest.fixture
def start(store_uri: str, database: Store) -> Iterator[StartWorker]:
    started: list[Process] = []

    def start(*, lease: float = 1.0, grace: float = 1.0, skew: float = 0) -> Process:
        options = [str(option) for option in (lease, grace, skew)]
        arguments = [sys.executable, str(SCRIPT), store_uri, database.name, *options]
        started.append(subprocess.Popen(arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def queue(database: Store) -> Queue:
    return Queue(database, lease_seconds=1.0)


@pytest.fixture
def run(database: Store) -> Iterator[Callable[..., Worker]]:
    started: list[tuple[Worker, threading.Thread]] = []

    def run(
        handlers: dict[str, Handler], services: tuple[Service, ...] = (), **options: Any
    ) -> Worker:
        database_of_worker = options.pop("database", database)
        worker = Worker(database_of_worker, handlers, services, lease_seconds=1.0, **options)
        worker.queue.retry_seconds = 0.1
        thread = threading.Thread(target=worker.run)
        thread.start()
        started.append((worker, thread))
        return worker

    yield run
    for worker, thread in started:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()


def state(queue: Queue, id: str) -> str:
    return str(queue.get(id)["state"])


def ends(queue: Queue, id: str, expected: str, seconds: float = 30) -> dict[str, Any]:
    until(lambda: state(queue, id) in ("succeeded", "failed", "cancelled"), seconds)
    job = queue.get(id)
    assert job["state"] == expected, job
    return job


# Handlers and services in this process ------------------------------------------------------------


def test_a_worker_signs_on_works_and_signs_off(
    database: Store, queue: Queue, run: Callable[..., Worker]
) -> None:
    def fit(job: RunningJob) -> dict[str, Any]:
        job.progress({"epoch": 1})
        return {"sum": sum(job.args["numbers"])}

    worker = run({"fit": fit})
    id = queue.put("fit", {"numbers": [1, 2]})
    assert ends(queue, id, "succeeded")["result"] == {"sum": 3}
    (record,) = alive_workers(database)
    assert record["_id"] == worker.id and record["state"] == "running"
    worker.stop()
    until(lambda: not alive_workers(database))


def test_what_is_retried_and_what_is_not(queue: Queue, run: Callable[..., Worker]) -> None:
    def fit(job: RunningJob) -> dict[str, Any]:
        errors = {"user": UserCodeError("bad"), "died": ChildDied("gone"), "bug": KeyError("bug")}
        raise errors[job.args["kind"]]

    run({"fit": fit})
    ids = {kind: queue.put("fit", {"kind": kind}) for kind in ("user", "died", "bug")}
    ended = {kind: ends(queue, id, "failed") for kind, id in ids.items()}
    assert {kind: job["attempts"] for kind, job in ended.items()} == {
        "user": 1,
        "died": 3,
        "bug": 1,
    }
    assert ended["bug"]["error"]["type"] == "KeyError"
    assert "test_worker.py" in ended["bug"]["error"]["traceback"]


def test_a_result_that_cannot_be_kept_fails_the_job(
    queue: Queue, run: Callable[..., Worker]
) -> None:
    run({"set": lambda job: {"a": {1}}, "large": lambda job: {"a": bytes(17 << 20)}})
    unfit, large = queue.put("set", {}), queue.put("large", {})
    assert "set" in ends(queue, unfit, "failed")["error"]["message"]
    ends(queue, large, "failed")


def test_a_failing_service_is_started_again_and_is_told_to_stop(
    run: Callable[..., Worker],
) -> None:
    class Failing:
        def __init__(self) -> None:
            self.starts = 0
            self.stopped = False

        def run(self, stop: threading.Event) -> None:
            self.starts += 1
            if self.starts == 1:
                raise RuntimeError("the first time it fails")
            stop.wait()
            self.stopped = True

    service = Failing()
    worker = run({}, (service,))
    until(lambda: service.starts == 2)
    worker.stop()
    until(lambda: service.stopped)


def test_an_outage_of_the_database_is_survived(
    store_uri: str,
    database: Store,
    queue: Queue,
    run: Callable[..., Worker],
    caplog: pytest.LogCaptureFixture,
) -> None:
    proxy = Proxy(parse_uri(store_uri)["nodelist"][0][1])
    address = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true"
    client: MongoClient[dict[str, Any]] = MongoClient(
        address, w="majority", serverSelectionTimeoutMS=300, connectTimeoutMS=1000
    )
    entered, leave = threading.Event(), threading.Event()

    def fit(job: RunningJob) -> dict[str, Any]:
        entered.set()
        leave.wait(30)
        job.progress({"epoch": 1})
        return {"n": 1}

    run({"fit": fit}, database=client[database.name])
    id = queue.put("fit", {})
    assert entered.wait(20)
    proxy.cut()
    until(lambda: queue.get(id)["expires_at"] > 0 and expired(queue, id))
    leave.set()  # it shows progress and ends while the database is away
    until(lambda: f"the end of job {id} cannot be written just now" in caplog.text)
    assert f"the progress of job {id} cannot be shown just now" in caplog.text
    assert state(queue, id) == "running"
    proxy.mend()
    job = ends(queue, id, "succeeded")
    assert (job["attempts"], job["result"]) == (1, {"n": 1})
    assert ends(queue, queue.put("fit", {}), "succeeded")["attempts"] == 1
    proxy.close()
    client.close()


def expired(queue: Queue, id: str) -> bool:
    stages: list[dict[str, Any]] = [
        {"$match": {"_id": id}},
        {"$project": {"over": {"$lt": ["$expires_at", {"$toLong": "$$NOW"}]}}},
    ]
    return bool(next(iter(queue.documents.aggregate(stages)))["over"])


# Real worker processes ----------------------------------------------------------------------------


def ran(database: Store, id: str) -> list[int]:
    return [one["pid"] for one in database["ran"].find({"job": id}).sort("attempt", 1)]


def test_a_killed_workers_job_is_done_by_another(
    database: Store, queue: Queue, start: StartWorker
) -> None:
    first = start()
    id = queue.put("slow", {})
    until(lambda: ran(database, id))
    first.kill()
    second = start()
    until(lambda: len(ran(database, id)) == 2)
    database["go"].insert_one({"_id": "go"})
    job = ends(queue, id, "succeeded")
    assert (job["attempts"], job["deaths"], job["result"]) == (2, 1, {"pid": second.pid})
    until(lambda: [one["pid"] for one in alive_workers(database, 3)] == [second.pid])


def test_a_paused_worker_wakes_up_too_late(
    database: Store, queue: Queue, start: StartWorker
) -> None:
    zombie = start()
    id = queue.put("slow", {})
    until(lambda: ran(database, id))
    zombie.send_signal(signal.SIGSTOP)
    heir = start()
    until(lambda: ran(database, id) == [zombie.pid, heir.pid])
    heir.send_signal(signal.SIGSTOP)  # holds the job while the zombie wakes up and ends
    database["go"].insert_one({"_id": "go"})
    zombie.send_signal(signal.SIGCONT)
    heir.send_signal(signal.SIGCONT)
    job = ends(queue, id, "succeeded")
    assert job["result"] == {"pid": heir.pid} and job["attempts"] == 2
    later = queue.put("note", {})
    ends(queue, later, "succeeded")
    assert queue.get(id) == job


def test_two_workers_compete_and_a_wrong_clock_changes_nothing(
    database: Store, queue: Queue, start: StartWorker
) -> None:
    ids = [queue.put("note", {"n": n}) for n in range(40)]
    pair = [start(), start(skew=86_400)]
    slow = queue.put("slow", {})
    for id in ids:
        assert ends(queue, id, "succeeded", 60)["attempts"] == 1
    assert database["ran"].count_documents({"job": {"$in": ids}}) == len(ids)
    until(lambda: ran(database, slow))
    assert len(alive_workers(database)) == 2
    until(lambda: expired_leases_seen(queue, slow, 2.5))
    database["go"].insert_one({"_id": "go"})
    assert ends(queue, slow, "succeeded")["attempts"] == 1
    assert {process.poll() for process in pair} == {None}


def expired_leases_seen(queue: Queue, id: str, seconds: float) -> bool:
    """Whether the job has run for so long on its first attempt."""
    job = queue.get(id)
    assert (job["state"], job["attempts"]) == ("running", 1)
    return bool(job["expires_at"] - job["started_at"] > (seconds + 1) * 1000)


def test_a_job_that_kills_workers_stops_after_its_attempts(
    database: Store, queue: Queue, start: StartWorker
) -> None:
    id = queue.put("poison", {}, max_attempts=2)
    for attempt in (1, 2):
        assert start().wait(30) == -signal.SIGKILL
        assert queue.get(id)["attempts"] == attempt
    start()
    job = ends(queue, id, "failed")
    assert job["error"]["message"] == "its worker died 2 times"
    assert len(ran(database, id)) == 2


def test_a_running_child_is_cancelled(queue: Queue, start: StartWorker) -> None:
    worker = start()
    id = queue.put("hang", {})
    until(lambda: "child" in queue.get(id)["progress"])
    child = queue.get(id)["progress"]["child"]
    queue.cancel(id)
    ends(queue, id, "cancelled")
    assert is_gone(child) and worker.poll() is None


def test_a_stopping_worker_lets_a_short_job_end(
    database: Store, queue: Queue, start: StartWorker
) -> None:
    worker = start(grace=20)
    id = queue.put("slow", {})
    until(lambda: ran(database, id))
    worker.send_signal(signal.SIGTERM)
    other = queue.put("note", {})
    until(lambda: [one["state"] for one in alive_workers(database)] == ["stopping"])
    database["go"].insert_one({"_id": "go"})
    assert worker.wait(20) == 0
    assert (state(queue, id), state(queue, other)) == ("succeeded", "queued")
    assert alive_workers(database) == []


@pytest.mark.parametrize("kind", ["hang", "slow"])
def test_a_stopping_worker_gives_a_long_job_back(
    database: Store, queue: Queue, start: StartWorker, kind: str
) -> None:
    worker = start(grace=0.5)
    id = queue.put(kind, {}, max_attempts=1)
    until(lambda: queue.get(id)["progress"] or ran(database, id))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    job = queue.get(id)
    assert (job["state"], job["attempts"], job["owner"]) == ("queued", 0, None)
    if kind == "hang":
        assert is_gone(job["progress"]["child"])
