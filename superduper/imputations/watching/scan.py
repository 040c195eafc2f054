"""Fill what is already there: walks over a collection in the order of `_id`, resumable anywhere.

While batches are written the model works on the next one, and the store always has another batch
to go on with: it is the only bottleneck.
A walk is over a range of the collection that others may share (`ranges.py`); its place is kept with
the range. It starts at a place by index bounds and not by a comparison: `{_id: {$gt: last}}` would
end where the type of the ids changes.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bson.raw_bson import RawBSONDocument

from superduper.errors import LostLease, NotFound
from superduper.fields import paths
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.isolate import BatchSize
from superduper.imputations.process import Filler
from superduper.imputations.provenance import BASE, fill_path
from superduper.imputations.watching.cutting import cut
from superduper.imputations.watching.fair_lock import FairLock
from superduper.imputations.watching.ranges import Bounds, Claim, Ranges
from superduper.imputations.writing import Prepared
from superduper.jobs.worker import alive_workers
from superduper.store.by_id import IdIndex

logger = logging.getLogger(__name__)

LARGEST_BATCH = 500
# What a batch came to is kept only when it is written: where workers die often and documents kill
# the model, a large first batch would be begun over and over.
FIRST_BATCH = 32
LARGEST_BATCH_BYTES = 16 << 20
CHECKPOINT_SECONDS = 1.0
# One that the store is busy with, and one that it finds when it is done.
IN_FLIGHT = 2
OTHERS_SECONDS = 0.2
NEWCOMERS_SECONDS = 5.0


def wanted(record: ImputationRecord) -> dict[str, Any]:
    """The filter for documents that may need something: nothing there, or a value of ours."""
    there = [{path: {"$exists": True}} for path in record.input_paths if path != BASE]
    needy: list[dict[str, Any]] = [{path: {"$exists": False}} for path in record.write_paths]
    # To a filter a path through an array is there; to us it is not, and the document is to be told.
    through = [place for path in record.write_paths for place in paths.above(path)]
    needy += [{place: {"$type": "array"}} for place in through]
    needy += [{f"{fill_path(path)}.imputation": record.name} for path in record.write_paths]
    parts: list[dict[str, Any]] = [*there, {"$or": needy}]
    if record.spec.get("filter"):
        parts.append(dict(record.spec["filter"]))
    return {"$and": parts}


def walk(
    filler: Filler, record: ImputationRecord, bounds: Bounds, size: BatchSize
) -> Iterator[list[RawBSONDocument]]:
    """Batches of documents within bounds that may need something."""
    cursor = filler.collection.find(wanted(record), filler.projection, batch_size=size.largest)
    cursor = cursor.hint([("_id", 1)])
    if "first" in bounds:
        cursor = cursor.min([("_id", bounds["first"])])
    if "end" in bounds:
        cursor = cursor.max([("_id", bounds["end"])])
    batch: list[RawBSONDocument] = []
    weight = 0
    with cursor:
        for document in cursor:
            batch.append(document)
            weight += len(document.raw)
            if len(batch) >= size.now or weight >= LARGEST_BATCH_BYTES:
                yield batch
                batch, weight = [], 0
    if batch:
        yield batch


class Scan:
    """A worker's part in one scan. Broken off at any point, it is gone on with where it was.

    The leader of the collection `lead`s: it begins and ends the scan. Other workers `help`.
    """

    def __init__(
        self,
        imputations: Imputations,
        record: ImputationRecord,
        filler: Filler,
        stop: threading.Event,
        turns: FairLock,
        id_index: IdIndex,
    ) -> None:
        self.turns = turns
        self.id_index = id_index
        self.imputations = imputations
        self.record = record
        self.filler = filler
        self.stop = stop
        self.size = BatchSize(LARGEST_BATCH, FIRST_BATCH)
        self._leads = False
        self._workers = 1
        self._counted_at = -math.inf

    def lead(self) -> bool:
        """See the scan through; False if it was stopped or another scan was asked for."""
        self._leads = True
        if "plan" not in self.record.scan and not self._cut():
            return False
        # Also where nothing is missing yet: the first insert is not to wait for the model.
        self.filler.isolation.make_ready()
        while self.help():
            ranges = Ranges(self.imputations, self.record).all()
            missing = len(ranges) != self.record.scan["ranges"]
            if not missing and all(each["done"] for each in ranges):
                return self._end()
            if (missing or self._have_come()) and not self._cut():
                return False
            self.stop.wait(OTHERS_SECONDS)
        return False

    def help(self) -> bool:
        """Walk ranges while one is free; False if it was stopped or another scan was asked for."""
        ranges, pace = Ranges(self.imputations, self.record), Pace()
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fill") as writer:
            while self.wanted() and not self._have_come():
                claim = ranges.take()
                if claim is None:
                    return True
                try:
                    _Walk(self, claim, writer, pace).run()
                except LostLease as error:
                    logger.info("%s: %s", self.record.id, error.message)
                finally:
                    claim.lease.release()
        return self.wanted()

    def goes_on(self) -> bool:
        """Whether the next batch is to be done under the present plan."""
        return self.wanted() and not self._have_come()

    def wanted(self) -> bool:
        """Whether this very scan still is to be done, by the version that does it."""
        if self.stop.is_set():
            return False
        try:
            now = self.imputations.get(self.record.collection, self.record.name)
        except NotFound:
            return False
        return now.filling and _asked(now) == _asked(self.record)

    def _have_come(self) -> bool:
        """Whether there are more workers than the scan was cut for: the leader cuts it anew."""
        if not self._leads:
            return False
        if time.monotonic() - self._counted_at > NEWCOMERS_SECONDS:
            self._workers = self._alive()
            self._counted_at = time.monotonic()
        return self._workers > int(self.record.scan["workers"])

    def _alive(self) -> int:
        return max(1, len(alive_workers(self.imputations.database)))

    def _cut(self) -> bool:
        cut_anew = cut(self.imputations, self.record, self._alive(), wanted(self.record))
        self.record = cut_anew or self.record
        return cut_anew is not None

    def _end(self) -> bool:
        self.filler.failures.forget_deleted(self.filler.collection)
        self.filler.layers.forget_deleted(self.filler.collection)
        progress = Ranges(self.imputations, self.record).progress()
        return self.imputations.set_scan(
            self.record, state="done", seen=progress.seen, filled=progress.filled, trouble=None
        )


class Pace:
    """How many documents a second a worker gets done."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._count = 0

    def after(self, count: int) -> float:
        """The pace with so many more."""
        self._count += count
        return self._count / max(time.monotonic() - self._began, 0.001)


class _Walk:
    """One walk over a range that is ours."""

    def __init__(self, scan: Scan, claim: Claim, writer: ThreadPoolExecutor, pace: Pace) -> None:
        self.scan = scan
        self.claim = claim
        self.writer = writer
        self.pace = pace
        self._writing: deque[_Writing] = deque()
        self._place: dict[str, Any] = {}
        self._seen = self._filled = 0
        self._saved_at = -math.inf

    def run(self) -> None:
        """Walk to the end, or until the scan does not go on; raises LostLease."""
        ended = self._walk()
        while self._writing:
            self._wait_for_oldest()
        self._save(done=ended)

    def _walk(self) -> bool:
        scan, filler = self.scan, self.scan.filler
        for documents in walk(filler, scan.record, self.claim.bounds, scan.size):
            if not scan.goes_on():
                return False
            self.claim.lease.check()
            self.claim.lease.progressed()
            scan.id_index.meet(each["_id"] for each in documents)
            deaths = filler.isolation.deaths
            prepared = filler.prepare(documents)
            if filler.isolation.deaths > deaths:
                scan.size.shrink()
            else:
                scan.size.grow()
            if len(self._writing) == IN_FLIGHT:
                self._wait_for_oldest()
            filled = self.writer.submit(self._finish, prepared)
            self._writing.append(_Writing(filled, documents[-1]["_id"], len(documents)))
        return True

    def _finish(self, prepared: Prepared) -> int:
        """Write a batch, when nobody else of this worker keeps the store busy."""
        return self.scan.filler.finish(prepared, self.scan.turns)

    def _wait_for_oldest(self) -> None:
        """Wait until it is written, and then remember the place, now and then."""
        batch = self._writing.popleft()
        self._filled += batch.filled.result()
        self._seen += batch.seen
        self._place = {"last": batch.last}
        if time.monotonic() - self._saved_at > CHECKPOINT_SECONDS:
            self._save(done=False)

    def _save(self, *, done: bool) -> None:
        self._saved_at = time.monotonic()
        rate = self.pace.after(self._seen)
        self.claim.save(self._seen, self._filled, rate=rate, done=done, **self._place)
        self._seen = self._filled = 0


@dataclass(frozen=True)
class _Writing:
    """A batch that is being written: its fills, its last document's `_id` and how many it saw."""

    filled: "Future[int]"
    last: Any
    seen: int


def _asked(record: ImputationRecord) -> tuple[Any, ...]:
    scan = record.scan
    return record.created_at, record.active, scan.get("version"), scan.get("asked_at")
