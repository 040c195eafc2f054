"""From documents to filled fields: what each one needs, what the model says, what is written.

`prepare` reads nothing and writes no document, `finish` does the writing; a scan runs the two side
by side. A document whose input moved in between is read again and computed again.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Collection as Members
from dataclasses import dataclass, field
from typing import Any

from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.database import Database

from superduper.imputations.corrections import Correction, Corrections, corrections_in
from superduper.imputations.decide import RAW, Work, decide, projection_of, read_as, split_outputs
from superduper.imputations.events import Echoes
from superduper.imputations.failures import KILLED, MAX_ATTEMPTS, Case, Failures, key_of, stands
from superduper.imputations.fill import LARGE_BYTES, Fill, Written, removal_of, update_of, write
from superduper.imputations.graph import inputs_of
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.isolate import Isolation, Outcome
from superduper.imputations.layers import Layer, Layers
from superduper.imputations.provenance import (
    FILL,
    as_one_value,
    fill_record,
    input_hash,
    value_hash,
)

ROUNDS = 6


class Counters:
    """What was done, by name; for several threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Count something that happened."""
        if count:
            with self._lock:
                self._counts[name] += count

    def take(self) -> dict[str, int]:
        """All counts since they were last taken."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return dict(counts)


@dataclass
class Prepared:
    """What is to be written for one batch; `attempts` are those counted before a run alone."""

    fills: list[tuple[Work, Fill]] = field(default_factory=list)
    failed: list[tuple[Case, Mapping[str, Any]]] = field(default_factory=list)
    withheld: list[tuple[Case, Outcome]] = field(default_factory=list)
    clearing: list[Work] = field(default_factory=list)
    suspects: list[Case] = field(default_factory=list)
    corrected: list[Correction] = field(default_factory=list)
    settled: list[Any] = field(default_factory=list)
    known: set[bytes] = field(default_factory=set)
    attempts: dict[bytes, int] = field(default_factory=dict)


class Filler:
    """Fills fields for one imputation with one version of its model.

    Used by one stream, one scan and one retrier at a time, in threads of their own. Everything may
    be repeated and interrupted at any point. Raises PyMongoError if the database is in trouble and
    ModelUnusable if the model is.
    """

    def __init__(
        self,
        database: Database[Any],
        record: ImputationRecord,
        isolation: Isolation,
        *,
        clock: Callable[[], int],
        counters: Counters,
        echoes: Echoes,
    ) -> None:
        self.echoes = echoes
        self.record = record
        self.isolation = isolation
        self.clock = clock
        self.counters = counters
        self.failures = Failures(database, record.id)
        self.layers = Layers(database, record.id)
        self.corrections = Corrections(database, record.id)
        self.collection: Collection[Any] = database[record.collection].with_options(RAW)

    def read(self, document_ids: Sequence[Any]) -> list[RawBSONDocument]:
        """The documents as they are now, of those that the imputation's filter admits."""
        wanted: dict[str, Any] = {"_id": {"$in": list(document_ids)}}
        if self.record.spec.get("filter"):
            wanted["$and"] = [self.record.spec["filter"]]
        return list(self.collection.find(wanted, projection_of([self.record])))

    def fill_ids(
        self,
        document_ids: Sequence[Any],
        touched: Mapping[bytes, int] | None = None,
        documents: Sequence[RawBSONDocument] | None = None,
    ) -> None:
        """Bring these documents up to date.

        `touched` tells when a person wrote a field that we fill, by `key_of` the document;
        `documents` is what was read of them just now, if it was.
        """
        if touched:
            self._release(corrections_in(self.record, self.read(document_ids), touched))
        self._rounds(document_ids, {}, {}, ROUNDS, documents)

    def prepare(self, documents: Sequence[RawBSONDocument]) -> Prepared:
        """Decide and predict for documents that have just been read."""
        works, prepared = self._sort(documents, [document["_id"] for document in documents])
        self._predict(works, prepared)
        return prepared

    def finish(self, prepared: Prepared) -> int:
        """Write what was prepared; documents that changed meanwhile are read and done again.

        Answers how many fields were filled at once, not counting those done again.
        """
        tried = {key_of(work.document_id): work.case.input for work, _ in prepared.fills}
        filled, unsettled = self._write(prepared)
        if unsettled:
            self._rounds(unsettled, tried, prepared.attempts, ROUNDS - 1)
        return filled

    def retry(self, failure: Mapping[str, Any]) -> None:
        """Try a document that failed once more, by itself."""
        works = [decide(self.record, document) for document in self.read([failure["document"]])]
        work = works[0] if works else None
        if work is None:
            self.failures.forget([failure["document"]])
            return
        key = key_of(work.document_id)
        self.isolation.make_ready()
        attempts = self.failures.begin(work.case, self.clock())
        prepared = Prepared(known={key}, attempts={key: min(attempts, MAX_ATTEMPTS)})
        if attempts > MAX_ATTEMPTS:
            prepared.failed.append((work.case, failure.get("error") or _NEVER_ENDED))
        else:
            value = as_one_value(work.values, self.record.input_paths)
            outcome = self.isolation.alone(value, attempts)
            self._judge(work, outcome, prepared, self.clock())
        self.finish(prepared)

    # Until nothing moves ---------------------------------------------------------------------

    def _rounds(
        self,
        document_ids: Sequence[Any],
        tried: dict[bytes, str],
        attempts: Mapping[bytes, int],
        rounds: int,
        documents: Sequence[RawBSONDocument] | None = None,
    ) -> None:
        """Read, predict and write until every update took effect or was overtaken."""
        insisted: set[bytes] = set()
        for _ in range(rounds):
            if documents is None:
                documents = self.read(document_ids)
            works, prepared = self._sort(documents, document_ids, attempts)
            documents = None
            stuck = {key for key, work in works.items() if tried.get(key) == work.case.input}
            for key in insisted & stuck:
                prepared.failed.append((works.pop(key).case, self._no_effect()))
            insisted |= stuck
            self._predict(works, prepared)
            tried = {key: work.case.input for key, work in works.items()}
            _, document_ids = self._write(prepared, exact=stuck)
            if not document_ids:
                return
        # The change that came in between is an event of its own, so this is not the end.
        self.counters.add("moving", len(document_ids))

    def _no_effect(self) -> dict[str, str]:
        fields = ", ".join(repr(path) for path in self.record.write_paths)
        message = f"the update has no effect: {FILL!r}, or a field above {fields}, is no document"
        return {"type": "WriteError", "message": message}

    # Preparing -------------------------------------------------------------------------------

    def _sort(
        self,
        documents: Sequence[RawBSONDocument],
        document_ids: Sequence[Any],
        attempts: Mapping[bytes, int] | None = None,
    ) -> tuple[dict[bytes, Work], Prepared]:
        """The documents to predict for; those that failed before or are done are left out."""
        known = self.failures.known(document_ids)
        prepared = Prepared(known=set(known), attempts=dict(attempts or {}))
        prepared.corrected = corrections_in(self.record, documents)
        works, needy = dict[bytes, Work](), set[bytes]()
        for document in documents:
            work = decide(self.record, document)
            if work is None:
                continue
            key = key_of(work.document_id)
            needy.add(key)
            failure = known.get(key)
            if work.input_changed and self.record.spec.get("on_input_change") == "clear":
                prepared.clearing.append(work)
            elif failure is not None and _killed_another(failure, work.case):
                prepared.suspects.append(work.case)
            elif failure is None or key in prepared.attempts or not stands(failure, work.case):
                works[key] = work
        prepared.settled = [each["document"] for key, each in known.items() if key not in needy]
        return works, prepared

    def _predict(self, works: Mapping[bytes, Work], prepared: Prepared) -> None:
        if not works:
            return
        keys = list(works)

        def count_attempt(position: int) -> None:
            key = keys[position]
            prepared.attempts[key] = self.failures.begin(works[key].case, self.clock())
            prepared.known.add(key)

        values = [as_one_value(work.values, self.record.input_paths) for work in works.values()]
        outcomes = self.isolation.predict(values, count_attempt)
        at = self.clock()
        for work, outcome in zip(works.values(), outcomes, strict=True):
            self._judge(work, outcome, prepared, at)

    def _judge(self, work: Work, outcome: Outcome, prepared: Prepared, at: int) -> None:
        """Sort one outcome: to be written, withheld or failed."""
        if outcome.get("error"):
            prepared.failed.append((work.case, outcome["error"]))
            return
        confidence = outcome.get("confidence")
        least = self.record.spec.get("min_confidence")
        if least is not None and not (confidence is not None and confidence >= least):
            prepared.withheld.append((work.case, outcome))
            return
        try:
            outputs = split_outputs(outcome.get("value"), self.record.write_paths)
            due = (*work.missing, *work.stale)
            fills = [self._fill(work, path, outputs[path], confidence, at) for path in due]
        except (ValueError, BSONError, OverflowError) as error:
            described = {"type": type(error).__name__, "message": str(error)}
            prepared.failed.append((work.case, described))
            return
        prepared.fills += [(work, fill) for fill in fills]

    def _fill(self, work: Work, path: str, value: Any, confidence: float | None, at: int) -> Fill:
        inputs = read_as(self.record, work.document, work.values)
        record = fill_record(
            imputation=self.record.name,
            version=work.case.version,
            at=at,
            inputs=work.case.input,
            value=value,
            confidence=confidence,
        )
        large = len(work.document.raw) > LARGE_BYTES
        return Fill(work.document_id, inputs, path, value, record, work.stale.get(path), large)

    # Writing ---------------------------------------------------------------------------------

    def _write(self, prepared: Prepared, exact: Members[bytes] = ()) -> tuple[int, list[Any]]:
        """Write a batch; how many were filled, and which documents may need another round."""
        self._clear(prepared.clearing)
        self._release(prepared.corrected)
        echoes = [(fill.target, key_of(fill.document_id)) for _, fill in prepared.fills]
        updates = [
            update_of(fill, exact=key in exact)
            for (_, fill), (_, key) in zip(prepared.fills, echoes, strict=True)
        ]
        self.layers.keep(_buried(prepared))
        written = self._send(updates, echoes)
        for position, error in written.errors.items():
            prepared.failed.append((prepared.fills[position][0].case, error))
        possible = len(updates) - len(written.errors)
        self.counters.add("filled", written.modified)
        self.counters.add("superseded", possible - written.modified)
        self._note(prepared)
        done = written.modified == possible
        self.failures.forget(prepared.settled + (_known_fills(prepared) if done else []))
        return written.modified, self._moved(prepared) if done else _unsettled(prepared)

    def _moved(self, prepared: Prepared) -> list[Any]:
        """The large documents whose input is not, or no more, what their value was computed from.

        Whoever is killed before this has not saved its place: the next one finds them outdated.
        """
        large = {key_of(fill.document_id): work for work, fill in prepared.fills if fill.large}
        if not large:
            return []
        moved = []
        for document in self.read([work.document_id for work in large.values()]):
            inputs = inputs_of(self.record, document)
            case = large[key_of(document["_id"])].case
            if inputs is not None and input_hash(inputs) != case.input:
                moved.append(case.document_id)
        return moved

    def _release(self, corrected: Sequence[Correction]) -> None:
        """Leave values to the people who changed them; they are counted before."""
        self.corrections.note(corrected, self.clock())
        released = write(self.collection, [each.release for each in corrected])
        self.counters.add("corrected", released.modified)

    def _send(self, updates: list[UpdateOne], echoes: list[tuple[str, bytes]]) -> Written:
        """Write fills; unless all took effect, none of their events is taken for granted."""
        written = Written()
        self.echoes.expect(echoes)
        try:
            written = write(self.collection, updates)
        finally:
            if written.modified < len(updates):
                self.echoes.withdraw(echoes)
        return written

    def _note(self, prepared: Prepared) -> None:
        now = self.clock()
        by_attempts: dict[int, list[tuple[Case, Mapping[str, Any]]]] = {}
        for case, error in prepared.failed:
            attempts = prepared.attempts.get(key_of(case.document_id), 1)
            by_attempts.setdefault(attempts, []).append((case, error))
        for attempts, failed in by_attempts.items():
            self.failures.fail(failed, attempts, now)
        self.failures.withhold(prepared.withheld, now)
        self.failures.suspect(prepared.suspects)
        self.counters.add("failed", len(prepared.failed))
        self.counters.add("withheld", len(prepared.withheld))

    def _clear(self, works: Sequence[Work]) -> None:
        """Remove our outdated values; the note comes first, or they would be filled again."""
        self.failures.clear_values([work.case for work in works], self.clock())
        removals = [
            removal_of(work.document_id, path, stale)
            for work in works
            for path, stale in work.stale.items()
        ]
        self.counters.add("cleared", write(self.collection, removals).modified)


_NEVER_ENDED = {"type": "WorkerDied", "message": "the worker ended during every attempt"}


def _buried(prepared: Prepared) -> list[Layer]:
    """Values that are written over for another version's, not because their input changed."""
    return [
        Layer(fill.document_id, fill.target, old.value, old.record, value_hash(fill.record))
        for _, fill in prepared.fills
        if (old := fill.replaces) is not None and old.record.get("input") == fill.record["input"]
    ]


def _refused(prepared: Prepared) -> set[bytes]:
    return {key_of(case.document_id) for case, *_ in (*prepared.failed, *prepared.withheld)}


def _known_fills(prepared: Prepared) -> list[Any]:
    """The filled documents that have a record among the failures, which is now out of date."""
    if not prepared.known:
        return []
    refused = _refused(prepared)
    filled = {key_of(work.document_id): work.document_id for work, _ in prepared.fills}
    return [each for key, each in filled.items() if key in prepared.known and key not in refused]


def _unsettled(prepared: Prepared) -> list[Any]:
    refused = _refused(prepared)
    filled = {key_of(work.document_id): work.document_id for work, _ in prepared.fills}
    return [each for key, each in filled.items() if key not in refused]


def _killed_another(failure: Mapping[str, Any], case: Case) -> bool:
    """Whether the same input took the process of another version along: no batch should have it."""
    if failure["input"] != case.input or failure["version"] == case.version:
        return False
    return (failure.get("error") or {}).get("type") in KILLED
