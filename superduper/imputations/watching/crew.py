"""The hands of a collection's leader: fillers, scans beside the stream, and retries beside both.

Whoever cannot go on with an imputation (its model does not load, its filter is refused) lets it
fall behind: the stream passes it over, and it is scanned anew after a pause that grows.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from superduper import settings
from superduper.errors import LostLease, NotFound, SuperduperError
from superduper.imputations.counters import Counters
from superduper.imputations.decide import RAW
from superduper.imputations.echoes import Echoes
from superduper.imputations.failures import Failures
from superduper.imputations.fill import is_server_trouble
from superduper.imputations.graph import Graph
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.isolate import Isolation, Outcome, Patience, Predictor
from superduper.imputations.process import Filler
from superduper.imputations.watching.events import Call
from superduper.imputations.watching.fair_lock import FairLock
from superduper.imputations.watching.scan import Scan
from superduper.imputations.watching.turn import Turn
from superduper.store.by_id import IdIndex
from superduper.store.mongo import server_now_ms
from superduper.store.registry import Registry

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
RETRIES_AT_ONCE = 64
PUT_OFF_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 2.0
MOST_PAUSE_SECONDS = 60.0
CLOCK_SECONDS = 60.0
TROUBLE = 500


class Hosts(Predictor, Protocol):
    """A pool of model hosts."""

    def close(self) -> None: ...


class ServerClock:
    """The database server's time without asking each time; a step of our own clock is no matter."""

    def __init__(self, database: Database[Any]) -> None:
        self._database = database
        self._offset = 0.0
        self._asked_at: float | None = None
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            now = time.monotonic()
            if self._asked_at is None or now - self._asked_at > CLOCK_SECONDS:
                self._offset = server_now_ms(self._database) - 1000 * time.monotonic()
                self._asked_at = now
            return int(self._offset + 1000 * time.monotonic())


@dataclass
class _Lag:
    """An imputation that fell behind: when to scan it, and how long to wait the next time."""

    until: float
    pause: float


class Crew:
    """Works for the imputations of one collection, during one term of its leader."""

    def __init__(
        self,
        database: Database[Any],
        registry: Registry,
        imputations: Imputations,
        collection: str,
        *,
        hosts: Hosts,
        retry_hosts: Hosts,
        progressed: Callable[[], None],
        fence: int = 0,
    ) -> None:
        self.fence = fence
        self.database = database
        self.registry = registry
        self.imputations = imputations
        self.collection = collection
        self._documents: Collection[Any] = database[collection].with_options(RAW)
        self.id_index = IdIndex(self._documents)
        self.hosts = _Reporting(hosts, progressed)
        self.retry_hosts = _Reporting(retry_hosts, progressed)
        self.clock = ServerClock(database)
        self.counters = Counters()
        self.echoes = Echoes()
        #: All imputations of the collection, also those that do not fill just now.
        self.graph = Graph(())
        #: Had by a scan while it writes, and by who reads what comes of it: two requests at once
        #: only keep each other up where the store is a single process.
        self.turns = FairLock()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._fillers: dict[tuple[str, bool], tuple[Any, Filler]] = {}
        self._scans: dict[str, _ScanThread] = {}
        self._behind: dict[str, _Lag] = {}
        self._records: list[ImputationRecord] = []
        self._begun: set[str] = set()
        self._retrier = threading.Thread(
            target=self._retry_forever, name=f"retry {collection}", daemon=True
        )

    # The leader's side -----------------------------------------------------------------------

    def look_after(self, records: Sequence[ImputationRecord]) -> None:
        """Take note of what is to be filled now, and start the scans that are due."""
        for record in records:
            if record.id not in self._begun:
                # Whoever ran these is gone: this worker holds the lease.
                Failures(self.database, record.id).release_running()
                self._begun.add(record.id)
        self.retry_for(records)
        for record in records:
            scan = self._scans.get(record.id)
            if scan is not None and not scan.is_alive():
                del self._scans[record.id]
                scan = None
            if scan is None and self._is_due(record) and self._may_scan(record):
                self._scans[record.id] = scan = _ScanThread(self, record)
                scan.start()

    def _is_due(self, record: ImputationRecord) -> bool:
        # A later leader may have lost its place in the stream, and not have another one yet.
        return record.scan.get("state") != "done" and record.fence <= self.fence

    def fill(self, calls: Sequence[Call]) -> None:
        """Bring documents up to date that the stream told of, for all imputations together."""
        self.id_index.meet(each for call in calls for each in call.ids)
        turn = self._turn(calls)
        for call in calls:
            if self._is_behind(call.record):
                continue  # a scan that starts later than this sees them
            with self._blaming(call.record):
                self._answer(call, turn)
        turn.write()

    def _turn(self, calls: Sequence[Call] = ()) -> Turn:
        return Turn(self.imputations, self._documents, calls, self._blaming, self.graph)

    def _answer(self, call: Call, turn: Turn) -> None:
        if call.deleted:
            Failures(self.database, call.record.id).forget_known(call.deleted)
        if call.ids and (live := turn.live(call.record)) is not None:
            turn.fill(self.filler(live), call)

    @contextlib.contextmanager
    def _blaming(self, record: ImputationRecord) -> Iterator[None]:
        """Have an imputation fall behind for an error of its own; any other comes out."""
        try:
            yield
        except (SuperduperError, PyMongoError) as error:
            if not self.is_imputations_fault(error):
                raise
            self.fall_behind(record, error)

    @property
    def scanning(self) -> bool:
        """Whether a scan is under way."""
        return any(scan.is_alive() for scan in self._scans.values())

    def scan(self, record: ImputationRecord, filler: Filler, stop: threading.Event) -> Scan:
        """This worker's part in a scan, to lead or to help with."""
        return Scan(self.imputations, record, filler, stop, self.turns, self.id_index)

    def stop_scans(self) -> None:
        """End the scans under way; their places are kept."""
        for scan in self._scans.values():
            scan.stop.set()
        for scan in self._scans.values():
            scan.join()
        self._scans.clear()
        # Scans end for good where the collection is dropped, and its indexes with it.
        self.id_index = IdIndex(self._documents)

    def stop(self) -> None:
        """End everything."""
        self._stop.set()
        self.stop_scans()
        if self._retrier.ident is not None:
            self._retrier.join()

    # Fillers ---------------------------------------------------------------------------------

    def filler(self, record: ImputationRecord, *, retrying: bool = False) -> Filler:
        """The filler for the live version of an imputation, which is pinned for a batch.

        Raises NotFound if its model is gone.
        """
        key = (record.id, retrying)
        graph = self.graph
        live = (record.created_at, record.active, record.active_component, record.refilled)
        is_for = (live, graph.shape)
        with self._lock:
            kept = self._fillers.get(key)
            if kept is not None and kept[0] == is_for:
                return kept[1]
        if record.active_component is None:
            raise NotFound(f"imputation {record.id!r} has no live version")
        model, version = record.active_component
        component = self.registry.get(record.collection, "model", model, version)
        hosts = self.retry_hosts if retrying else self.hosts
        patience = Patience(settings.get_number("PREDICT_TIMEOUT"))
        filler = Filler(
            self.database,
            record,
            Isolation(hosts, component, patience, self.counters.add),
            clock=self.clock,
            counters=self.counters,
            echoes=self.echoes,
            graph=graph,
        )
        with self._lock:
            self._fillers[key] = (is_for, filler)
        return filler

    # Falling behind --------------------------------------------------------------------------

    def is_imputations_fault(self, error: Exception) -> bool:
        """Whether an error concerns one imputation only, and not the database or the lease."""
        if isinstance(error, OperationFailure):
            return not is_server_trouble(error)
        return isinstance(error, SuperduperError) and not isinstance(error, LostLease)

    def fall_behind(self, record: ImputationRecord, error: Exception) -> None:
        """Leave an imputation out of the stream until it is scanned again."""
        logger.warning("imputation %s cannot be filled just now: %s", record.id, error)
        self.counters.add("fell_behind")
        # First the scan that will see what the stream passes over, then the passing over.
        self.imputations.request_scan(record.collection, record.name, trouble=str(error)[:TROUBLE])
        with self._lock:
            before = self._behind.get(record.id)
            pause = min(before.pause * 2, MOST_PAUSE_SECONDS) if before else FIRST_PAUSE_SECONDS
            self._behind[record.id] = _Lag(time.monotonic() + pause, pause)

    def caught_up(self, record: ImputationRecord) -> None:
        """A scan went through: the next trouble begins with a short pause again."""
        with self._lock:
            self._behind.pop(record.id, None)

    def _is_behind(self, record: ImputationRecord) -> bool:
        with self._lock:
            lag = self._behind.get(record.id)
            return lag is not None and lag.until > 0

    def _may_scan(self, record: ImputationRecord) -> bool:
        """Whether no pause holds it up; from now on the stream serves it again."""
        with self._lock:
            lag = self._behind.get(record.id)
            if lag is None:
                return True
            if time.monotonic() < lag.until:
                return False
            lag.until = 0.0
            return True

    # Retries ---------------------------------------------------------------------------------

    def retry_for(self, records: Sequence[ImputationRecord]) -> None:
        """From now on, make the retries of these imputations when they are due.

        All workers do so for a collection, each attempt being one worker's: a document that never
        ends holds up one of them at a time.
        """
        self._records = list(records)
        if records and self._retrier.ident is None:
            self._retrier.start()

    def _retry_forever(self) -> None:
        while not self._stop.wait(RETRY_SECONDS):
            for record in self._records:
                if self._stop.is_set() or self._is_behind(record):
                    continue
                try:
                    self._retry(record)
                except PyMongoError as error:
                    logger.warning("retries of %s are interrupted: %s", record.id, error)
                except SuperduperError as error:
                    logger.warning("retries of %s are put off: %s", record.id, error)
                    self._stop.wait(PUT_OFF_SECONDS)

    def _retry(self, record: ImputationRecord) -> None:
        due = Failures(self.database, record.id).due(self.clock(), RETRIES_AT_ONCE)
        # Who helps begins at the other end than who leads: so they seldom want the same.
        for failure in due if self.fence else reversed(due):
            live = self._turn().live(record)
            ours = any(each.id == record.id for each in self._records)
            if self._stop.is_set() or live is None or not ours:
                return
            self.filler(live, retrying=True).retry(failure)


class _ScanThread(threading.Thread):
    """One scan, beside the stream."""

    def __init__(self, crew: Crew, record: ImputationRecord) -> None:
        super().__init__(name=f"scan {record.id}", daemon=True)
        self.crew = crew
        self.record = record
        self.stop = threading.Event()

    def run(self) -> None:
        """Scan; what cannot go on now is started again by the leader."""
        try:
            filler = self.crew.filler(self.record)
            if self.crew.scan(self.record, filler, self.stop).lead():
                self.crew.caught_up(self.record)
        except (SuperduperError, PyMongoError) as error:
            self._leave_off(error)

    def _leave_off(self, error: Exception) -> None:
        if self.crew.is_imputations_fault(error):
            try:
                self.crew.fall_behind(self.record, error)
                return
            except PyMongoError as outage:
                error = outage
        logger.warning("%s is interrupted and goes on where it was: %s", self.name, error)


class _Reporting:
    """A pool of hosts that tells the lease's watchdog that the work goes on."""

    def __init__(self, hosts: Hosts, progressed: Callable[[], None]) -> None:
        self._hosts = hosts
        self._progressed = progressed

    def predict(self, component: Any, values: list[Any], timeout: float) -> list[Outcome]:
        """One outcome for each value."""
        self._progressed()
        return self._hosts.predict(component, values, timeout)
