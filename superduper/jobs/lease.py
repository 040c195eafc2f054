"""The right to do what only one worker may do at a time: kept in the database, by its clock.

Who holds a lease is told by `owner` (unique per start of a process) and `fence` (one more with each
holder). A write that only the holder may make carries both in its filter, so that a holder that was
paused and woke up too late changes nothing.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pymongo
from pymongo import ReturnDocument
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError, PyMongoError

from superduper.errors import LostLease

logger = logging.getLogger(__name__)

# The server's time in milliseconds; numbers, because stored dates compare wrongly with `$$NOW` on
# the embedded store.
NOW: dict[str, Any] = {"$toLong": "$$NOW"}
WATCHDOG_SECONDS = 20.0
RENEWALS_PER_LEASE = 4


class Renewal:
    """Keeps a claim alive from a thread of its own, so that no slow work can delay it.

    `renew` extends the claim in the database and returns False if it is no longer ours. With
    `watchdog_seconds` it is called only while `progressed` was, within that time: a holder that
    hangs loses its claim.
    """

    def __init__(
        self,
        renew: Callable[[], bool],
        *,
        name: str,
        seconds: float,
        interval: float | None = None,
        watchdog_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.lost = threading.Event()
        self._renew = renew
        self._seconds = seconds
        self._interval = interval or seconds / RENEWALS_PER_LEASE
        self._watchdog_seconds = watchdog_seconds
        self._clock = clock
        self._deadline = self._progressed_at = -float("inf")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"renew {name}", daemon=True)

    def start(self, since: float) -> None:
        """Go on from a claim made at `since`, the clock's time before the request was sent."""
        self._deadline = since + self._seconds
        self._progressed_at = self._clock()
        self._thread.start()

    def progressed(self) -> None:
        """Tell the watchdog that the work goes on."""
        self._progressed_at = self._clock()

    @property
    def held(self) -> bool:
        """Whether the claim is certainly still ours."""
        return not self.lost.is_set() and self._clock() < self._deadline

    def confirm(self) -> bool:
        """Whether the claim is ours; the database is asked if that is not certain any more.

        A store that was too busy to renew it may have given it to nobody since.
        """
        if not self.held and not self.lost.is_set():
            self._extend()
        return self.held

    def stop(self) -> None:
        """Stop renewing."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(self._interval)

    def _run(self) -> None:
        hung = False
        while not self._stopped.wait(self._interval):
            if self._hangs():
                if not hung:
                    logger.warning("%s makes no progress: its lease is not renewed", self.name)
                hung = True
                continue
            hung = False
            self._extend()
            if self.lost.is_set():
                return

    def _extend(self) -> None:
        before = self._clock()
        try:
            # A connection that hangs must not outlast the lease: the next one may work.
            with pymongo.timeout(self._seconds / 2):
                renewed = self._renew()
        except PyMongoError as error:
            logger.warning("the lease of %s cannot be renewed just now: %s", self.name, error)
            return
        if renewed:
            self._deadline = max(self._deadline, before + self._seconds)
        else:
            self.lost.set()

    def _hangs(self) -> bool:
        if self._watchdog_seconds is None:
            return False
        return self._clock() - self._progressed_at > self._watchdog_seconds


class Lease:
    """A lease kept in one document; its fields are `owner`, `fence` and `expires_at`.

    Use it as `if lease.acquire(): try: ... finally: lease.release()`, call `progressed` as the work
    goes on and `check` before each write. With `upsert=False` no document is made: one that was
    removed is not to come again.
    """

    def __init__(
        self,
        collection: Collection[dict[str, Any]],
        id: Any,
        owner: str,
        seconds: float,
        *,
        watchdog_seconds: float = WATCHDOG_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        upsert: bool = True,
    ) -> None:
        self.id = id
        self.owner = owner
        self.fence = 0
        self._collection = collection
        self._seconds = seconds
        self._watchdog_seconds = watchdog_seconds
        self._clock = clock
        self._upsert = upsert
        self._renewal: Renewal | None = None

    def acquire(self) -> bool:
        """Take the lease if it is free, has run out, or is this owner's; else return False."""
        self._stop_renewal()
        if not self._seems_free():
            return False
        before = self._clock()
        taken = {
            "owner": self.owner,
            "fence": {"$add": [{"$ifNull": ["$fence", 0]}, 1]},
            "expires_at": self._expiry(),
        }
        # The comparison is in the pipeline: in the filter it would keep `_id`'s index from use.
        change = {"$cond": [self._free(), {"$mergeObjects": ["$$ROOT", taken]}, "$$ROOT"]}
        try:
            document = self._collection.find_one_and_update(
                {"_id": self.id},
                [{"$replaceWith": change}],
                upsert=self._upsert,
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError:  # another worker has just created the document
            return False
        if document is None or document["owner"] != self.owner:
            return False
        self.fence = int(document["fence"])
        self._renewal = self._new_renewal()
        self._renewal.start(before)
        return True

    @property
    def held(self) -> bool:
        """Whether the lease is certainly still ours."""
        return self._renewal is not None and self._renewal.held

    @property
    def filter(self) -> dict[str, Any]:
        """The filter of a write that only the holder may make."""
        return {"_id": self.id, "owner": self.owner, "fence": self.fence}

    def check(self) -> None:
        """Raise LostLease unless the lease is still ours; see `Renewal.confirm`."""
        if self._renewal is None or not self._renewal.confirm():
            raise LostLease(f"the lease {self.id!r} is no longer held: another worker may have it")

    def progressed(self) -> None:
        """Tell the watchdog that the work goes on."""
        if self._renewal is not None:
            self._renewal.progressed()

    def release(self) -> None:
        """Give the lease back, so that the next worker need not wait until it runs out."""
        if self._renewal is None:
            return
        self._stop_renewal()
        try:
            self._collection.update_one(self.filter, {"$set": {"owner": None, "expires_at": 0}})
        except PyMongoError as error:
            logger.warning("the lease %r was not given back and runs out: %s", self.id, error)

    def _stop_renewal(self) -> None:
        if self._renewal is not None:
            self._renewal.stop()
            self._renewal = None

    def _new_renewal(self) -> Renewal:
        holder, expiry = self.filter, [{"$set": {"expires_at": self._expiry()}}]
        return Renewal(
            lambda: self._collection.update_one(holder, expiry).matched_count == 1,
            name=str(self.id),
            seconds=self._seconds,
            watchdog_seconds=self._watchdog_seconds,
            clock=self._clock,
        )

    def _seems_free(self) -> bool:
        """A plain read first: those who wait ask often, and a write each time would be costly."""
        stages = [{"$match": {"_id": self.id}}, {"$project": {"free": self._free()}}]
        found = next(iter(self._collection.aggregate(stages)), None)
        return self._upsert if found is None else bool(found["free"])

    def _free(self) -> dict[str, Any]:
        expired = {"$lt": [{"$ifNull": ["$expires_at", 0]}, NOW]}
        return {"$or": [{"$eq": ["$owner", {"$literal": self.owner}]}, expired]}

    def _expiry(self) -> dict[str, Any]:
        return {"$add": [NOW, int(self._seconds * 1000)]}
