"""Fill what is already there: a walk over a collection in the order of `_id`, resumable anywhere.

While batches are written the model works on the next one, and the store always has another batch
to go on with: it is the only bottleneck.
The walk's place is kept with the imputation. It starts at a place by index bounds and not by a
comparison: `{_id: {$gt: last}}` would end where the type of the ids changes.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection

from superduper.errors import NotFound
from superduper.imputations.decide import projection_of
from superduper.imputations.fair_lock import FairLock
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.isolate import BatchSize
from superduper.imputations.process import Filler, Prepared
from superduper.imputations.provenance import BASE, fill_path

LARGEST_BATCH = 500
# What a batch came to is kept only when it is written: where workers die often and documents kill
# the model, a large first batch would be begun over and over.
FIRST_BATCH = 32
LARGEST_BATCH_BYTES = 16 << 20
CHECKPOINT_SECONDS = 1.0
# One that the store is busy with, and one that it finds when it is done.
IN_FLIGHT = 2


class Stop(Protocol):
    """Tells whether to leave off; a `threading.Event` is one."""

    def is_set(self) -> bool: ...


def wanted(record: ImputationRecord) -> dict[str, Any]:
    """The filter for documents that may need something: nothing there, or a value of ours."""
    there = [{path: {"$exists": True}} for path in record.input_paths if path != BASE]
    needy: list[dict[str, Any]] = [{path: {"$exists": False}} for path in record.write_paths]
    needy += [{f"{fill_path(path)}.imputation": record.name} for path in record.write_paths]
    parts: list[dict[str, Any]] = [*there, {"$or": needy}]
    if record.spec.get("filter"):
        parts.append(dict(record.spec["filter"]))
    return {"$and": parts}


def walk(
    collection: Collection[Any], record: ImputationRecord, size: BatchSize
) -> Iterator[list[RawBSONDocument]]:
    """Batches of documents that may need something, from where the last walk was broken off."""
    cursor = collection.find(wanted(record), projection_of([record]), batch_size=size.largest)
    cursor = cursor.hint([("_id", 1)])
    if "last" in record.scan:
        cursor = cursor.min([("_id", record.scan["last"])])
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
    """One walk for one imputation. Broken off at any point, it goes on where it was."""

    def __init__(
        self,
        imputations: Imputations,
        record: ImputationRecord,
        filler: Filler,
        stop: Stop,
        turns: FairLock,
    ) -> None:
        self.turns = turns
        self.imputations = imputations
        self.record = record
        self.filler = filler
        self.stop = stop
        self.size = BatchSize(LARGEST_BATCH, FIRST_BATCH)
        self.seen = int(record.scan.get("seen", 0))
        self.filled = int(record.scan.get("filled", 0))
        self._saved_at = 0.0

    def run(self) -> bool:
        """Walk to the end; False if it was stopped or another scan was asked for."""
        if not self.imputations.set_scan(self.record, state="running"):
            return False
        # Also where nothing is missing yet: the first insert is not to wait for the model.
        self.filler.isolation.make_ready()
        with ThreadPoolExecutor(1, thread_name_prefix="fill") as writer:
            if not self._walk(writer):
                return False
        self.filler.failures.forget_deleted(self.filler.collection)
        self.filler.layers.forget_deleted(self.filler.collection)
        return self.imputations.set_scan(
            self.record, state="done", seen=self.seen, filled=self.filled
        )

    def _walk(self, writer: ThreadPoolExecutor) -> bool:
        writing: deque[_Writing] = deque()
        for documents in walk(self.filler.collection, self.record, self.size):
            if not self._wanted():
                return False
            deaths = self.filler.isolation.deaths
            prepared = self.filler.prepare(documents)
            if self.filler.isolation.deaths > deaths:
                self.size.shrink()
            else:
                self.size.grow()
            if len(writing) == IN_FLIGHT and not self._written(writing.popleft()):
                return False
            filled = writer.submit(self._finish, prepared)
            writing.append(_Writing(filled, documents[-1]["_id"], len(documents)))
        return all(self._written(batch) for batch in writing)

    def _finish(self, prepared: Prepared) -> int:
        """Write a batch, at a time when nobody else of this worker keeps the store busy."""
        with self.turns:
            return self.filler.finish(prepared)

    def _wanted(self) -> bool:
        """Whether this very scan still is to be done, by the version that does it."""
        if self.stop.is_set():
            return False
        try:
            now = self.imputations.get(self.record.collection, self.record.name)
        except NotFound:
            return False
        return now.filling and _asked(now) == _asked(self.record)

    def _written(self, batch: "_Writing") -> bool:
        """Wait for the oldest batch, and then remember the place; False if superseded."""
        self.filled += batch.filled.result()
        self.seen += batch.seen
        if time.monotonic() - self._saved_at < CHECKPOINT_SECONDS:
            return True
        self._saved_at = time.monotonic()
        return self.imputations.set_scan(
            self.record, last=batch.last, seen=self.seen, filled=self.filled
        )


@dataclass(frozen=True)
class _Writing:
    """A batch that is being written: its fills, its last document's `_id` and how many it saw."""

    filled: "Future[int]"
    last: Any
    seen: int


def _asked(record: ImputationRecord) -> tuple[Any, ...]:
    scan = record.scan
    return record.created_at, record.active, scan.get("version"), scan.get("asked_at")
