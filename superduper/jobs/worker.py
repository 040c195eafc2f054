"""A worker: takes jobs from the queue and runs services, until it is told to stop."""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from pymongo.database import Database
from pymongo.errors import PyMongoError

from superduper.errors import LostLease, NotReady, TimedOut
from superduper.jobs.lease import NOW
from superduper.jobs.queue import OUTAGES, Cancelled, Document, Queue, RunningJob

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 2.0
ALIVE_SECONDS = 10.0
FORGET_SECONDS = 3600.0
GRACE_SECONDS = 5.0  # with the next, less than the 10 s that containers get to stop
UNWIND_SECONDS = 3.0
TURN_SECONDS = 0.2
WAIT_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 15.0

# Not the job's fault, or not surely: another attempt may succeed.
RETRIED = (NotReady, TimedOut, LostLease, PyMongoError, OSError)

Handler = Callable[[RunningJob], Mapping[str, Any] | None]


class Service(Protocol):
    """Something that runs as long as the worker does."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; called again, after a pause, if it raises."""


class Worker:
    """Runs jobs in `slots` threads and each service in one; `run` blocks until `stop`.

    An outage of the database is survived: the worker waits and goes on.
    """

    def __init__(
        self,
        database: Database[Document],
        handlers: Mapping[str, Handler],
        services: Sequence[Service] = (),
        *,
        slots: int = 1,
        lease_seconds: float | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self.id = uuid.uuid4().hex
        self.queue = Queue(database, lease_seconds=lease_seconds)
        self._records = database["superduper.workers"]
        self._handlers = handlers
        self._services = services
        self._slots = slots
        self._grace_seconds = grace_seconds
        self._asked = False
        self._stop = threading.Event()
        self._stopped = threading.Event()
        self._jobs: set[RunningJob] = set()

    def run(self) -> None:
        """Work until `stop` is called, then drain: jobs get a grace to end, then are given back."""
        heartbeat = self._start(self._keep_heartbeat, "heartbeat")
        services = [
            self._start(partial(self._keep_serving, service), type(service).__name__)
            for service in self._services
        ]
        slots = [self._start(self._keep_working, f"slot {n}") for n in range(self._slots)]
        try:
            while not self._asked:
                time.sleep(TURN_SECONDS)
        finally:
            self._drain(slots, services)
            self._stopped.set()
            heartbeat.join(UNWIND_SECONDS)

    def stop(self) -> None:
        """Ask `run` to drain and return; safe in a signal handler, and more than once."""
        # Only a flag: setting an Event takes a lock that the interrupted code may be holding.
        self._asked = True

    def _start(self, target: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=target, name=f"worker {name}", daemon=True)
        thread.start()
        return thread

    # Jobs ------------------------------------------------------------------------------------

    def _keep_working(self) -> None:
        pause = _Pause(self._stop)
        kinds = list(self._handlers)
        while kinds and not self._stop.is_set():
            try:
                job = self.queue.claim(self.id, kinds)
                if job is None:
                    self.queue.wait_for_work(kinds, WAIT_SECONDS, self._stop)
            except PyMongoError as error:
                logger.warning("no job can be claimed just now: %s", error)
                pause.wait()
                continue
            except Exception:
                logger.exception("no job can be claimed")
                pause.wait()
                continue
            pause.reset()
            if job is not None:
                self._run(job)

    def _run(self, job: RunningJob) -> None:
        self._jobs.add(job)
        if self._stop.is_set():
            job.stopping.set()
        logger.info("job %s (%s) starts, attempt %d", job.id, job.kind, job.attempts)
        try:
            self._settle(job, self._outcome(job))
        finally:
            job.abandon()
            self._jobs.discard(job)

    def _outcome(self, job: RunningJob) -> Callable[[], None]:
        """Run the handler; return what is to be written about it."""
        try:
            result = self._handlers[job.kind](job)
        except Cancelled:
            given_back = job.stopping.is_set() and not job.cancelled.is_set()
            return job.give_back if given_back else job.end_cancelled
        except Exception as error:
            logger.warning("job %s (%s) failed: %s", job.id, job.kind, error)
            return partial(job.fail, error, isinstance(error, RETRIED))
        return partial(job.succeed, result)

    def _settle(self, job: RunningJob, write: Callable[[], None]) -> None:
        """Write how a job ended, or that this could not be written."""
        try:
            try:
                self._insist(job, write)
            except LostLease:
                raise
            except Exception as error:  # the result has no place in a document
                logger.warning("the result of job %s cannot be kept: %s", job.id, error)
                self._insist(job, partial(job.fail, error, False))
        except (LostLease, PyMongoError) as error:
            logger.warning("job %s is left to others: %s", job.id, error)

    def _insist(self, job: RunningJob, write: Callable[[], None]) -> None:
        """Try again while the database is away: the fence makes a late write safe."""
        pause = _Pause(self._stopped)
        while not self._stopped.is_set():
            try:
                write()
                return
            except OUTAGES as error:
                logger.warning("the end of job %s cannot be written just now: %s", job.id, error)
                pause.wait()

    # Services --------------------------------------------------------------------------------

    def _keep_serving(self, service: Service) -> None:
        pause = _Pause(self._stop)
        while not self._stop.is_set():
            try:
                service.run(self._stop)
                return
            except (PyMongoError, NotReady) as error:
                logger.warning("service %s is interrupted: %s", type(service).__name__, error)
            except Exception:
                logger.exception("service %s failed and is started again", type(service).__name__)
            pause.wait()

    # Life ------------------------------------------------------------------------------------

    def _keep_heartbeat(self) -> None:
        record = {"host": socket.gethostname(), "pid": os.getpid(), "slots": self._slots}
        while True:
            state = "stopping" if self._stop.is_set() else "running"
            started = {"$ifNull": ["$started_at", NOW]}
            change = {**record, "state": state, "started_at": started, "seen_at": NOW}
            try:
                self._records.update_one({"_id": self.id}, [{"$set": change}], upsert=True)
            except PyMongoError as error:
                logger.warning("the heartbeat cannot be written just now: %s", error)
            if self._stopped.wait(HEARTBEAT_SECONDS):
                break
        try:
            self._records.delete_one({"_id": self.id})
        except PyMongoError as error:
            logger.warning("worker %s could not sign off: %s", self.id, error)

    def _drain(self, slots: list[threading.Thread], services: list[threading.Thread]) -> None:
        self._stop.set()
        for job in list(self._jobs):
            job.stopping.set()
        _join(slots, self._grace_seconds)
        for job in list(self._jobs):
            logger.warning("job %s did not end within the grace and is given back", job.id)
            job.interrupted.set()
        _join([*slots, *services], UNWIND_SECONDS)
        for job in list(self._jobs):
            try:
                job.give_back()
            except (LostLease, PyMongoError) as error:
                logger.warning("job %s is left to others: %s", job.id, error)


class _Pause:
    """Waits longer each time, up to a limit, or until the event is set."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self.reset()

    def reset(self) -> None:
        self._seconds = FIRST_PAUSE_SECONDS

    def wait(self) -> None:
        self._stop.wait(self._seconds)
        self._seconds = min(self._seconds * 2, MAX_PAUSE_SECONDS)


def _join(threads: Sequence[threading.Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def alive_workers(
    database: Database[Document], within_seconds: float = ALIVE_SECONDS
) -> list[Document]:
    """The workers that were seen lately, by the server's clock; long dead ones are forgotten."""
    records = database["superduper.workers"]
    now_and_then = records.aggregate([{"$set": {"silent_ms": {"$subtract": [NOW, "$seen_at"]}}}])
    found = list(now_and_then)
    dead = [one["_id"] for one in found if one["silent_ms"] > FORGET_SECONDS * 1000]
    if dead:
        records.delete_many({"_id": {"$in": dead}})
    return [one for one in found if one["silent_ms"] <= within_seconds * 1000]
