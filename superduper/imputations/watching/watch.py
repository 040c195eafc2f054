"""Keep fields filled: follow each collection's changes, and scan what changes cannot tell.

One worker at a time leads a collection, under a lease. It follows one change stream for all of the
collection's imputations; what the stream says is a hint, after which the documents themselves are
read. The place in the stream is saved after the writes. Where the history is lost, a new stream is
opened first and then the collection is scanned. So nothing is lost wherever a worker is killed.
"""

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pymongo.database import Database
from pymongo.errors import PyMongoError

from superduper import settings
from superduper.errors import LostLease, SuperduperError
from superduper.imputations import corrections, failures, layers
from superduper.imputations.graph import Graph
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.watching.crew import Crew, Hosts
from superduper.imputations.watching.events import call_of
from superduper.imputations.watching.helper import Helper
from superduper.jobs.lease import Lease
from superduper.store.changes import Change, Changes, HistoryLost
from superduper.store.registry import Registry

logger = logging.getLogger(__name__)

NAME = "superduper.watchers"
STREAM_BATCH = 64
WAIT_MS = 500
# An insert that wakes who waits for it must share the store's one processor with them. While
# changes keep coming nobody waits: what has come is fetched in these intervals, all at once.
GATHER_SECONDS = 0.05
GATHER_FOR_SECONDS = 0.3
# A scan's fills come back one by one; fetching them in heaps halves what they cost.
ECHO_BATCH = 1024
ECHO_PAUSE_SECONDS = 0.1
POLL_SECONDS = 1.0
LOOK_SECONDS = 0.4
SAVE_SECONDS = 0.5
IDLE_SAVE_SECONDS = 10.0
MOST_BACKOFF_SECONDS = 30.0
# Longer than the longest prediction, which has a deadline of its own: a slow model does not hang.
WATCHDOG_MARGIN_SECONDS = 180.0


class WatchService:
    """Watches every collection that has something to fill; one of the services of a worker."""

    def __init__(
        self,
        database: Database[Any],
        registry: Registry,
        hosts_factory: Callable[[], Hosts],
        imputations: Imputations,
        *,
        owner: str | None = None,
    ) -> None:
        self.database = database
        self.registry = registry
        self.hosts_factory = hosts_factory
        self.imputations = imputations
        self.owner = owner or uuid.uuid4().hex
        self._watches: dict[str, CollectionWatch] = {}

    def run(self, stop: threading.Event) -> None:
        """Watch until told to stop; what is under way is finished."""
        hosts, retry_hosts = self.hosts_factory(), self.hosts_factory()
        prepared = False
        try:
            while not stop.is_set():
                try:
                    if not prepared:
                        failures.prepare(self.database)
                        layers.prepare(self.database)
                        corrections.prepare(self.database)
                        prepared = True
                    self._follow(self._collections(), hosts, retry_hosts)
                except PyMongoError as error:
                    logger.warning("the imputations cannot be read just now: %s", error)
                stop.wait(POLL_SECONDS)
        finally:
            for watch in self._watches.values():
                watch.stop.set()
            for watch in self._watches.values():
                watch.join()
            hosts.close()
            retry_hosts.close()

    def _collections(self) -> set[str]:
        return {record.collection for record in self.imputations.find() if record.filling}

    def _follow(self, collections: set[str], hosts: Hosts, retry_hosts: Hosts) -> None:
        for name, watch in list(self._watches.items()):
            if name not in collections:
                watch.stop.set()
            if not watch.is_alive():
                del self._watches[name]
        for name in collections - set(self._watches):
            self._watches[name] = watch = CollectionWatch(self, name, hosts, retry_hosts)
            watch.start()


class Backoff:
    """How long to wait after trouble: longer each time, and little again after a while without."""

    def __init__(self) -> None:
        self._count = 0

    def seconds_after(self, lasted: float) -> float:
        """Seconds to wait when trouble came after so many seconds without."""
        self._count = 1 if lasted > MOST_BACKOFF_SECONDS else self._count + 1
        return float(min(MOST_BACKOFF_SECONDS, 0.5 * 2**self._count))


class CollectionWatch(threading.Thread):
    """Leads one collection whenever its lease can be had."""

    def __init__(self, service: WatchService, name: str, hosts: Hosts, retry_hosts: Hosts) -> None:
        super().__init__(name=f"watch {name}", daemon=True)
        self.collection_name = name
        self.service = service
        self.imputations = service.imputations
        self.watchers = service.database[NAME]
        self.stop = threading.Event()
        self.hosts = hosts
        self.retry_hosts = retry_hosts
        self.helper = Helper(
            Crew(
                service.database,
                service.registry,
                service.imputations,
                name,
                hosts=hosts,
                retry_hosts=retry_hosts,
                progressed=lambda: None,
            )
        )

    def run(self) -> None:
        """Take the lease and lead, or help who leads; again and again, until told to stop."""
        self.helper.start()
        try:
            self._keep_leading()
        finally:
            self.helper.end()

    def _keep_leading(self) -> None:
        backoff, began = Backoff(), time.monotonic()
        while not self.stop.is_set():
            try:
                self._lead_if_free()
                self._keep_account()
                self.stop.wait(POLL_SECONDS)
                continue
            except LostLease as error:
                logger.warning("%s: %s", self.name, error.message)
            except (PyMongoError, SuperduperError) as error:
                logger.warning("%s is interrupted: %s", self.name, error)
            except Exception:  # a boundary: one collection's trouble must not end the others
                logger.exception("%s failed and begins anew", self.name)
            self.stop.wait(backoff.seconds_after(time.monotonic() - began))
            began = time.monotonic()

    def _lead_if_free(self) -> None:
        seconds = settings.get_number("LEASE_SECONDS")
        watchdog = settings.get_number("PREDICT_TIMEOUT") + WATCHDOG_MARGIN_SECONDS
        lease = Lease(
            self.watchers,
            f"stream:{self.collection_name}",
            self.service.owner,
            seconds,
            watchdog_seconds=watchdog,
        )
        if not lease.acquire():
            return
        try:
            with self.helper.resting():
                Leading(self, lease).run()
        finally:
            lease.release()

    def _keep_account(self) -> None:
        """Add what was done to help to the collection's figures."""
        if counts := self.helper.crew.counters.take():
            added = {f"counters.{name}": count for name, count in counts.items()}
            self.watchers.update_one({"_id": f"stream:{self.collection_name}"}, {"$inc": added})


class Leading:
    """One term as the leader of a collection: from taking its lease to losing or leaving it."""

    def __init__(self, watch: CollectionWatch, lease: Lease) -> None:
        self.watch = watch
        self.lease = lease
        self.collection = watch.service.database[watch.collection_name]
        self.crew = Crew(
            watch.service.database,
            watch.service.registry,
            watch.imputations,
            watch.collection_name,
            hosts=watch.hosts,
            retry_hosts=watch.retry_hosts,
            progressed=lease.progressed,
            fence=lease.fence,
        )
        self._records: list[ImputationRecord] = []
        self._looked_at = -math.inf
        self._saved_at = -math.inf
        self._unsaved_ms: int | None = None
        self._worked_at = -math.inf
        self._behind = False
        self._only_echoes = False

    def run(self) -> None:
        """Follow the stream until told to stop; raises LostLease if another worker took over."""
        changes = self._open()
        try:
            while not self.watch.stop.is_set():
                self.lease.check()
                self.lease.progressed()
                try:
                    self._turn(changes)
                except HistoryLost as error:
                    changes.close()
                    changes = self._start_over(error)
                    self.watch.stop.wait(POLL_SECONDS)
        finally:
            self.crew.stop()
            changes.close()

    def _turn(self, changes: Changes) -> None:
        """One batch of changes, if there are any, and the place after it."""
        # What becomes live after this look needs no change to be told: it will be scanned.
        if time.monotonic() - self._looked_at > LOOK_SECONDS:
            records = self.watch.imputations.find(self.watch.collection_name)
            self._records = [record for record in records if record.filling]
            self.crew.graph = Graph(records)
            self.crew.look_after(self._records)
            self._looked_at = time.monotonic()
        batch = self._next(changes)
        worked = self._process(batch) if batch else False
        if worked:
            self._worked_at = time.monotonic()
        if batch:
            self._unsaved_ms = batch[-1].cluster_time_ms
        self._save_if_due(changes, idle=not batch and not self._gathering)
        self._only_echoes = bool(batch) and not worked and self.crew.scanning
        self._behind = len(batch) >= STREAM_BATCH and worked

    def _next(self, changes: Changes) -> list[Change]:
        """The next changes: waited for where all is quiet, gathered where much is going on."""
        if self._only_echoes:
            self.watch.stop.wait(ECHO_PAUSE_SECONDS)
            return changes.next_batch(ECHO_BATCH, 1, self.crew.turns)
        if not self._gathering:
            return changes.next_batch(STREAM_BATCH, WAIT_MS)
        if not self._behind:
            self.watch.stop.wait(GATHER_SECONDS)
        return changes.next_batch(STREAM_BATCH, 1)

    @property
    def _gathering(self) -> bool:
        return time.monotonic() - self._worked_at < GATHER_FOR_SECONDS

    def _save_if_due(self, changes: Changes, *, idle: bool) -> None:
        """Often enough that little is done again; also when idle, for a place grows old."""
        since = time.monotonic() - self._saved_at
        if self._unsaved_ms is None:
            if since > IDLE_SAVE_SECONDS:
                self._save(changes)
        elif idle or since > SAVE_SECONDS:
            self._save(changes)

    def _process(self, batch: Sequence[Change]) -> bool:
        """Have done what these changes call for; False if they call for nothing."""
        worked = False
        for start in range(0, len(batch), STREAM_BATCH):
            part = batch[start : start + STREAM_BATCH]
            calls = [
                call_of(record, part, self.crew.echoes, self.crew.graph.source_paths(record))
                for record in self._records
            ]
            if wanted := [call for call in calls if call]:
                worked = True
                self.crew.fill(wanted)
        return worked

    # The place in the stream -----------------------------------------------------------------

    def _open(self) -> Changes:
        state = self.watch.watchers.find_one({"_id": self.lease.id}) or {}
        token = state.get("token")
        try:
            if not isinstance(token, Mapping):
                raise HistoryLost("there is no place to go on from")
            return Changes(self.collection, token)
        except HistoryLost as error:
            return self._start_over(error)

    def _start_over(self, error: HistoryLost) -> Changes:
        """Ask for scans, then open a new stream, then save its place; scans begin after that."""
        logger.info("%s is scanned: %s", self.watch.collection_name, error)
        self.crew.counters.add("history_lost")
        self.crew.stop_scans()
        self.lease.check()
        self._write({"token": None})
        self.watch.imputations.request_scan(self.watch.collection_name, fence=self.lease.fence)
        changes = Changes(self.collection)
        try:
            self._save(changes)
        except BaseException:
            changes.close()
            raise
        return changes

    def _save(self, changes: Changes) -> None:
        now, at_ms = self.crew.clock(), self._unsaved_ms
        fields = {
            "collection": self.watch.collection_name,
            "token": changes.token,
            "seen_at": now,
            "lag_ms": max(0, now - at_ms) if at_ms is not None else 0,
        }
        self._write(fields)
        self._saved_at, self._unsaved_ms = time.monotonic(), None

    def _write(self, fields: dict[str, Any]) -> None:
        """Change the watcher's document, if the lease is still ours."""
        update: dict[str, Any] = {"$set": fields}
        counts = self.crew.counters.take()
        if counts:
            update["$inc"] = {f"counters.{name}": count for name, count in counts.items()}
        if self.watch.watchers.update_one(self.lease.filter, update).matched_count != 1:
            raise LostLease(f"the lease {self.lease.id!r} was taken by another worker")
