"""Work that takes time, kept in the database: put, claim, run under a lease, finish once.

States: queued -> running -> succeeded | failed | cancelled. A claim counts the attempt before the
run, and a new `fence` with it: only the last claimant can finish the job. A running job whose lease
ran out, because its worker died, is claimed again; nothing is ever decided by a job's age.
"""

import logging
import threading
import time
from collections.abc import Collection as Several
from collections.abc import Iterator, Mapping
from typing import Any

import bson
from pymongo import ASCENDING, DESCENDING, ReturnDocument
from pymongo.database import Database
from pymongo.errors import ConnectionFailure, ExecutionTimeout, WTimeoutError

from superduper import settings
from superduper.errors import LostLease, NotFound, TooLarge
from superduper.jobs.channel import describe, encode
from superduper.jobs.lease import NOW, Renewal

logger = logging.getLogger(__name__)

ENDED = ("succeeded", "failed", "cancelled")
# The database is away or slow; the same request may succeed in a moment.
OUTAGES = (ConnectionFailure, ExecutionTimeout, WTimeoutError)
CANDIDATES = 8
MAX_ARGS_BYTES = 8 << 20  # leaves room in the document for progress and result
POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 1.0
RETRY_SECONDS = 2.0
MAX_RETRY_SECONDS = 300.0

Document = dict[str, Any]


class Cancelled(Exception):
    """The work was cancelled, or its worker is stopping: control flow, not a failure."""


class Queue:
    """The collection `superduper.jobs` of one database. Safe for several threads."""

    def __init__(
        self,
        database: Database[Document],
        *,
        lease_seconds: float | None = None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.documents = database["superduper.jobs"]
        self.lease_seconds = lease_seconds or settings.get_number("LEASE_SECONDS")
        self.retry_seconds = retry_seconds
        self._indexed = False

    # For those who have work done --------------------------------------------------------------

    def put(self, kind: str, args: Mapping[str, Any], max_attempts: int = 3) -> str:
        """Add a job; return its id.

        Raises InvalidInput or TooLarge if the arguments cannot be kept in a document.
        """
        if len(encode({"args": args})) > MAX_ARGS_BYTES:
            raise TooLarge(f"the arguments of a {kind!r} job are over {MAX_ARGS_BYTES >> 20} MiB")
        self._create_indexes()
        id = str(bson.ObjectId())
        job = {
            "kind": kind,
            "args": {"$literal": dict(args)},
            "state": "queued",
            "run_at": NOW,
            "created_at": NOW,
            "attempts": 0,
            "max_attempts": max_attempts,
            "deaths": 0,
            "owner": None,
            "fence": 0,
            "expires_at": 0,
            "cancel": False,
            "progress": {"$literal": {}},
            "result": {"$literal": {}},
            "error": None,
            "started_at": None,
            "finished_at": None,
        }
        self.documents.update_one({"_id": id}, [{"$set": job}], upsert=True)
        return id

    def get(self, id: str) -> Document:
        """The job's document.

        Raises NotFound if there is none.
        """
        job = self.documents.find_one({"_id": id})
        if job is None:
            raise NotFound(f"there is no job {id!r}")
        return job

    def list(self, state: str | None = None, limit: int = 100) -> list[Document]:
        """The jobs, or those in one state, newest first."""
        filter = {} if state is None else {"state": state}
        order = [("created_at", DESCENDING), ("_id", DESCENDING)]
        return list(self.documents.find(filter).sort(order).limit(limit))

    def cancel(self, id: str) -> Document:
        """Ask for the end of a job: at once if it waits, soon if it runs; return its document.

        Raises NotFound if there is no such job. An ended job stays as it is.
        """
        waits, runs = ({"$eq": ["$state", state]} for state in ("queued", "running"))
        change = {
            "cancel": {"$or": ["$cancel", waits, runs]},
            "state": {"$cond": [waits, "cancelled", "$state"]},
            "finished_at": {"$cond": [waits, NOW, "$finished_at"]},
        }
        job = self.documents.find_one_and_update(
            {"_id": id}, [{"$set": change}], return_document=ReturnDocument.AFTER
        )
        if job is None:
            raise NotFound(f"there is no job {id!r}")
        return job

    # For workers -------------------------------------------------------------------------------

    def claim(self, owner: str, kinds: Several[str]) -> "RunningJob | None":
        """Take the job that is due longest, if there is one, and start its renewal.

        Candidates are read and then taken by compare-and-set on `_id` and `fence`: sorting inside
        an update makes the embedded store stall when several workers compete.
        """
        self._create_indexes()
        for candidate in self._due(kinds):
            before = time.monotonic()
            job = self._take(candidate, owner)
            if job is not None:
                return RunningJob(self, job, before)
        return None

    def wait_for_work(self, kinds: Several[str], timeout: float, stop: threading.Event) -> bool:
        """Wait until some job is due, the time is over, or `stop` is set; whether there is one."""
        deadline = time.monotonic() + timeout
        while not stop.is_set():
            if next(self._due(kinds), None) is not None:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            stop.wait(min(POLL_SECONDS, left))
        return False

    def _due(self, kinds: Several[str]) -> Iterator[Document]:
        for state, field in (("running", "expires_at"), ("queued", "run_at")):
            stages: list[Mapping[str, Any]] = [
                {"$match": {"state": state, "kind": {"$in": list(kinds)}}},
                {"$sort": {field: ASCENDING}},
                {"$limit": CANDIDATES},
                {"$set": {"due": {"$lte": [f"${field}", NOW]}}},
                {"$project": {"state": 1, "fence": 1, "due": 1, "run_at": 1}},
            ]
            yield from (job for job in self.documents.aggregate(stages) if job["due"])

    def _take(self, candidate: Document, owner: str) -> "Document | None":
        died = candidate["state"] == "running"
        seen = {key: candidate[key] for key in ("_id", "state", "fence")}
        due = {"$lte": ["$expires_at" if died else "$run_at", NOW]}
        # A dead worker's job that was cancelled, or had its last attempt, ends here.
        ends = {"$or": ["$cancel", {"$gte": ["$attempts", "$max_attempts"]}]} if died else False
        deaths = {"$add": ["$deaths", int(died)]}
        change = {"$cond": [ends, self._burial(deaths), self._claim(owner, deaths)]}
        job = self.documents.find_one_and_update(
            seen,
            [{"$replaceWith": {"$cond": [due, {"$mergeObjects": ["$$ROOT", change]}, "$$ROOT"]}}],
            return_document=ReturnDocument.AFTER,
        )
        # With the fence in the filter, only one claimant can take it from this number to the next.
        taken = job is not None and job["fence"] > candidate["fence"]
        return job if taken and job is not None and job["state"] == "running" else None

    def _claim(self, owner: str, deaths: Document) -> Document:
        return {
            "state": "running",
            "owner": owner,
            "fence": {"$add": ["$fence", 1]},
            "attempts": {"$add": ["$attempts", 1]},
            "deaths": deaths,
            "expires_at": self.expiry(),
            "started_at": NOW,
        }

    def _burial(self, deaths: Document) -> Document:
        text = {"$concat": ["its worker died ", {"$toString": deaths}, " times"]}
        error = {"type": "WorkerDied", "message": text, "traceback": ""}
        return {
            "state": {"$cond": ["$cancel", "cancelled", "failed"]},
            "owner": None,
            "fence": {"$add": ["$fence", 1]},
            "deaths": deaths,
            "error": {"$cond": ["$cancel", "$error", error]},
            "finished_at": NOW,
        }

    def expiry(self) -> Document:
        """When a lease taken now runs out, as an expression for an update."""
        return {"$add": [NOW, int(self.lease_seconds * 1000)]}

    def _create_indexes(self) -> None:
        if self._indexed:
            return
        for field in ("run_at", "expires_at"):
            self.documents.create_index([("state", ASCENDING), (field, ASCENDING)])
        self.documents.create_index([("created_at", DESCENDING)])
        self._indexed = True


class RunningJob:
    """A claimed job. Its lease is renewed by a thread of its own until it is finished.

    `interrupted` is set when the work should end now (cancelled, lease lost, or the worker's grace
    is over): give it to `Child.request` as `cancel`. `stopping` is set earlier, when the worker
    begins to stop: who can save a checkpoint does it then and returns by raising Cancelled.
    """

    def __init__(self, queue: Queue, job: Document, claimed_at: float) -> None:
        self.id: str = job["_id"]
        self.kind: str = job["kind"]
        self.args: Document = job["args"]
        self.attempts: int = job["attempts"]
        self.max_attempts: int = job["max_attempts"]
        self.fence: int = job["fence"]
        self.last_progress: Document = job["progress"]
        self.cancelled = threading.Event()
        self.stopping = threading.Event()
        self.interrupted = threading.Event()
        self._queue = queue
        self._documents = queue.documents
        self._owned = {"_id": self.id, "owner": job["owner"], "fence": self.fence}
        self._running = {**self._owned, "state": "running"}
        seconds = queue.lease_seconds
        self._renewal = Renewal(
            self._renew,
            name=f"job {self.id}",
            seconds=seconds,
            interval=min(seconds / 4, HEARTBEAT_SECONDS),
        )
        self._renewal.start(claimed_at)

    # While it runs -----------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        """Whether another worker has the job, or may have it."""
        return self._renewal.lost.is_set()

    def check(self) -> None:
        """Raise LostLease or Cancelled if the work should not go on."""
        if self.lost:
            raise self._lost_lease()
        if self.interrupted.is_set():
            raise Cancelled(f"job {self.id} was cancelled, or its worker is stopping")

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Show how far it is, for anyone to read; the next attempt finds it as `last_progress`.

        Raises LostLease or Cancelled if the work should not go on. While the database is away,
        progress is not shown, and the work goes on.
        """
        self.check()
        try:
            self._take_in(self._update({"$set": {"progress": dict(progress)}}))
        except OUTAGES as error:
            logger.warning("the progress of job %s cannot be shown just now: %s", self.id, error)
        self.check()

    def advanced(self) -> None:
        """What is done so far will not be done again: earlier attempts no longer count.

        A job that is killed again and again ends at last, and one that gets further does not.
        """
        self._take_in(self._update({"$set": {"attempts": 1}}))
        self.attempts = 1

    def _renew(self) -> bool:
        return self._take_in(self._update([{"$set": {"expires_at": self._queue.expiry()}}]))

    def _update(self, change: Any) -> Document | None:
        return self._documents.find_one_and_update(
            self._running, change, {"cancel": 1}, return_document=ReturnDocument.AFTER
        )

    def _take_in(self, job: Document | None) -> bool:
        if job is None:
            self._renewal.lost.set()
            self.interrupted.set()
        elif job["cancel"]:
            self.cancelled.set()
            self.interrupted.set()
        return job is not None

    # The end -----------------------------------------------------------------------------------

    def succeed(self, result: Mapping[str, Any] | None = None) -> None:
        """Finish the job with its result.

        Raises LostLease if another worker has the job; then nothing is changed.
        """
        self._end({"state": "succeeded", "result": {"$literal": dict(result or {})}, "error": None})

    def fail(self, error: BaseException | Mapping[str, Any], retry: bool) -> None:
        """Finish the job with its error, or queue it again, later each time, if attempts are left.

        Raises LostLease if another worker has the job; then nothing is changed.
        """
        told = {"$literal": error_document(error)}
        if not retry or self.attempts >= self.max_attempts:
            self._end({"state": "failed", "error": told})
            return
        pause = min(self._queue.retry_seconds * 2 ** (self.attempts - 1), MAX_RETRY_SECONDS)
        self._requeue({"run_at": {"$add": [NOW, int(pause * 1000)]}, "error": told})

    def give_back(self) -> None:
        """Queue the job again at once, without counting this attempt: its worker stops."""
        self._requeue({"run_at": NOW, "attempts": {"$subtract": ["$attempts", 1]}})

    def end_cancelled(self) -> None:
        """Finish the job as cancelled."""
        self._end({"state": "cancelled"})

    def abandon(self) -> None:
        """Stop renewing and change nothing."""
        self._renewal.stop()

    def _requeue(self, change: Document) -> None:
        state = {"$cond": ["$cancel", "cancelled", "queued"]}
        finished_at = {"$cond": ["$cancel", NOW, None]}
        self._end({**change, "state": state, "finished_at": finished_at})

    def _end(self, change: Document) -> None:
        final = {"finished_at": NOW, **change, "owner": None, "ended_by": self._owned["owner"]}
        result = self._documents.update_one(self._running, [{"$set": final}])
        if result.matched_count == 0 and not self._has_ended():
            self._renewal.lost.set()
            self.interrupted.set()
            self._renewal.stop()
            raise self._lost_lease()
        self._renewal.stop()

    def _has_ended(self) -> bool:
        """Whether an earlier try, whose answer was lost, has ended it: the fence is still ours."""
        mine = {"_id": self.id, "fence": self.fence, "ended_by": self._owned["owner"]}
        return self._documents.find_one(mine, {"_id": 1}) is not None

    def _lost_lease(self) -> LostLease:
        return LostLease(f"job {self.id} (attempt {self.attempts}) is no longer this worker's")


def error_document(error: BaseException | Mapping[str, Any]) -> Document:
    """An error as it is kept: `{code, type, message, traceback}`."""
    told = dict(error) if isinstance(error, Mapping) else describe(error)
    return {key: str(told.get(key, "")) for key in ("code", "type", "message", "traceback")}
