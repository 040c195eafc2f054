"""Each job is run by one worker at a time, counted before it runs, and ended once."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from pymongo.database import Database

from superduper.errors import InvalidInput, LostLease, NotFound, TooLarge
from superduper.jobs.channel import ChildError
from superduper.jobs.lease import NOW
from superduper.jobs.queue import Cancelled, Queue, RunningJob
from tests.waiting import until

KINDS = ("fit",)


def is_past(queue: Queue, time_ms: int) -> bool:
    stages: list[dict[str, Any]] = [{"$limit": 1}, {"$project": {"now": NOW}}]
    return bool(next(iter(queue.documents.aggregate(stages)))["now"] > time_ms)


@pytest.fixture
def queue(database: Database[dict[str, Any]]) -> Iterator[Queue]:
    before = set(threading.enumerate())
    yield Queue(database, lease_seconds=1.0, retry_seconds=0.1)
    renewals = [thread for thread in threading.enumerate() if "renew" in thread.name]
    assert not set(renewals) - before, "a renewal outlived its test"


def claimed(queue: Queue, owner: str = "worker") -> RunningJob:
    jobs: list[RunningJob] = []

    def claim() -> bool:
        job = queue.claim(owner, KINDS)
        if job is not None:
            jobs.append(job)
        return job is not None

    until(claim, 10)
    return jobs[0]


def test_a_job_from_start_to_end(queue: Queue) -> None:
    id = queue.put("fit", {"imputation": "docs/y", "$odd": {"a.b": "$x"}})
    waiting = queue.get(id)
    assert (waiting["state"], waiting["attempts"]) == ("queued", 0)
    job = claimed(queue)
    assert (job.id, job.attempts, job.last_progress) == (id, 1, {})
    assert job.args == {"imputation": "docs/y", "$odd": {"a.b": "$x"}}
    running = queue.get(id)
    assert (running["state"], running["attempts"], running["fence"]) == ("running", 1, job.fence)
    job.progress({"epoch": 3, "metrics": {"a.b": 0.5}})
    assert queue.get(id)["progress"] == {"epoch": 3, "metrics": {"a.b": 0.5}}
    job.succeed({"version": 1})
    ended = queue.get(id)
    assert (ended["state"], ended["result"], ended["error"]) == ("succeeded", {"version": 1}, None)
    assert ended["created_at"] <= ended["started_at"] <= ended["finished_at"]
    assert queue.claim("worker", KINDS) is None


def test_only_asked_kinds_are_claimed_oldest_first(queue: Queue) -> None:
    ids = []
    for n in range(3):
        ids.append(queue.put("fit", {"n": n}))
        until(partial(is_past, queue, queue.get(ids[-1])["created_at"]))
    assert queue.claim("worker", ("other",)) is None
    jobs = [claimed(queue) for _ in ids]
    assert [job.id for job in jobs] == ids
    for job in jobs:
        job.succeed()
    assert [job["_id"] for job in queue.list()] == ids[::-1]
    assert [job["_id"] for job in queue.list("succeeded", limit=1)] == ids[-1:]
    assert queue.list("failed") == []


def test_unknown_and_unfit_jobs(queue: Queue) -> None:
    for ask in (queue.get, queue.cancel):
        with pytest.raises(NotFound, match="no job 'nobody'"):
            ask("nobody")
    with pytest.raises(InvalidInput, match="set"):
        queue.put("fit", {"a": {1}})
    with pytest.raises(TooLarge, match="'fit' job are over 8 MiB"):
        queue.put("fit", {"a": bytes(9 << 20)})
    assert queue.list() == []


def test_a_failure_is_kept_with_its_traceback(queue: Queue) -> None:
    id = queue.put("fit", {})
    try:
        raise KeyError("column")
    except KeyError as error:
        claimed(queue).fail(error, retry=False)
    job = queue.get(id)
    assert job["state"] == "failed" and job["finished_at"]
    assert job["error"]["type"] == "KeyError" and "column" in job["error"]["message"]
    assert "test_queue.py" in job["error"]["traceback"]


def test_a_failure_in_a_child_is_kept_as_the_child_told_it(queue: Queue) -> None:
    id = queue.put("fit", {})
    told = ChildError("fit: ValueError: bad", type="ValueError", text="bad", traceback="in user.py")
    claimed(queue).fail(told, retry=False)
    text = {"message": "bad", "traceback": "in user.py"}
    error = {"code": "user_code", "type": "ValueError", **text}
    assert queue.get(id)["error"] == error


def test_retries_are_counted_and_wait_longer_each_time(queue: Queue) -> None:
    id = queue.put("fit", {}, max_attempts=3)
    pauses = []
    for attempt in (1, 2):
        job = claimed(queue)
        assert job.attempts == attempt
        before = queue.get(id)["started_at"]
        job.fail({"type": "NotReady", "message": "no host"}, retry=True)
        waiting = queue.get(id)
        assert waiting["state"] == "queued" and waiting["error"]["type"] == "NotReady"
        pauses.append(waiting["run_at"] - before)
    assert pauses[0] >= 100 and pauses[1] >= 200
    last = claimed(queue)
    last.fail({"type": "NotReady", "message": "no host"}, retry=True)
    assert queue.get(id)["state"] == "failed"


def test_a_waiting_job_is_cancelled_at_once(queue: Queue) -> None:
    id = queue.put("fit", {})
    assert queue.cancel(id)["state"] == "cancelled"
    assert queue.claim("worker", KINDS) is None
    assert queue.cancel(id)["state"] == "cancelled"


def test_a_running_job_learns_that_it_is_cancelled(queue: Queue) -> None:
    id = queue.put("fit", {})
    job = claimed(queue)
    queue.cancel(id)
    assert job.cancelled.wait(5) and job.interrupted.is_set()
    with pytest.raises(Cancelled):
        job.progress({})
    job.end_cancelled()
    assert queue.get(id)["state"] == "cancelled"


def test_a_cancelled_job_is_not_tried_again(queue: Queue) -> None:
    id = queue.put("fit", {})
    job = claimed(queue)
    queue.cancel(id)
    job.fail({"type": "NotReady", "message": "no host"}, retry=True)
    assert queue.get(id)["state"] == "cancelled"


def test_a_job_that_ends_before_it_learns_of_the_cancellation_keeps_its_end(queue: Queue) -> None:
    id = queue.put("fit", {})
    job = claimed(queue)
    queue.cancel(id)
    job.succeed({"version": 1})
    assert queue.get(id)["state"] == "succeeded"


def test_a_living_job_is_never_taken_however_long_it_runs(queue: Queue) -> None:
    queue.put("fit", {})
    job = claimed(queue)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert queue.claim("other", KINDS) is None
        job.stopping.wait(0.1)
    job.succeed()


def test_a_dead_workers_job_is_taken_over_and_its_late_end_is_refused(queue: Queue) -> None:
    id = queue.put("fit", {})
    zombie = claimed(queue, "zombie")
    zombie.progress({"checkpoint": "abc"})
    zombie.abandon()
    heir = claimed(queue, "heir")
    assert heir.id == id and heir.attempts == 2 and heir.fence == zombie.fence + 1
    assert heir.last_progress == {"checkpoint": "abc"}
    ends: tuple[Callable[[], None], ...] = (
        lambda: zombie.succeed({"from": "zombie"}),
        lambda: zombie.fail({"type": "X"}, retry=True),
        zombie.give_back,
        zombie.end_cancelled,
        lambda: zombie.progress({"from": "zombie"}),
    )
    for end in ends:
        with pytest.raises(LostLease, match=f"job {id} "):
            end()
    assert zombie.lost and zombie.interrupted.is_set()
    heir.succeed({"from": "heir"})
    ended = queue.get(id)
    assert (ended["result"], ended["deaths"]) == ({"from": "heir"}, 1)
    assert ended["progress"] == {"checkpoint": "abc"}


def test_the_renewal_finds_out_that_the_job_is_anothers(queue: Queue) -> None:
    queue.put("fit", {})
    job = claimed(queue)
    queue.documents.update_one({"_id": job.id}, {"$inc": {"fence": 1}})
    assert job.interrupted.wait(5) and job.lost
    with pytest.raises(LostLease):
        job.check()
    job.abandon()


def test_a_job_that_kills_its_workers_is_buried(queue: Queue) -> None:
    id = queue.put("fit", {}, max_attempts=2)
    for _ in range(2):
        claimed(queue).abandon()
    until(lambda: queue.claim("other", KINDS) or queue.get(id)["state"] != "running", 10)
    job = queue.get(id)
    assert (job["state"], job["attempts"], job["deaths"]) == ("failed", 2, 2)
    assert job["error"]["message"] == "its worker died 2 times"


def test_a_dead_workers_cancelled_job_ends_as_cancelled(queue: Queue) -> None:
    id = queue.put("fit", {})
    job = claimed(queue)
    job.abandon()
    queue.cancel(id)
    until(lambda: queue.claim("other", KINDS) or queue.get(id)["state"] != "running", 10)
    assert queue.get(id)["state"] == "cancelled"


def test_a_given_back_job_does_not_count(queue: Queue) -> None:
    id = queue.put("fit", {}, max_attempts=1)
    claimed(queue).give_back()
    waiting = queue.get(id)
    assert (waiting["state"], waiting["attempts"]) == ("queued", 0)
    claimed(queue).succeed()


def test_ending_twice_is_ending_once(queue: Queue) -> None:
    queue.put("fit", {})
    job = claimed(queue)
    job.succeed({"n": 1})
    job.succeed({"n": 2})  # as after an answer that was lost on the way
    assert queue.get(job.id)["result"] == {"n": 1}


def test_many_claimants_take_each_job_once(queue: Queue) -> None:
    ids = {queue.put("fit", {"n": n}) for n in range(40)}
    taken: list[str] = []

    def work(name: str) -> None:
        misses = 0
        while misses < 3:
            job = queue.claim(name, KINDS)
            if job is None:
                misses += 1
                continue
            taken.append(job.id)
            job.succeed()

    threads = [threading.Thread(target=work, args=(f"worker {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(ids) and set(taken) == ids
    assert all(job["attempts"] == 1 for job in queue.list())


def test_waiting_for_work(queue: Queue) -> None:
    stop = threading.Event()
    assert not queue.wait_for_work(KINDS, 0.1, stop)
    timer = threading.Timer(0.2, queue.put, ("fit", {}))
    timer.start()
    assert queue.wait_for_work(KINDS, 10, stop)
    timer.join()
    claimed(queue).succeed()
    stop.set()
    assert not queue.wait_for_work(KINDS, 10, stop)
