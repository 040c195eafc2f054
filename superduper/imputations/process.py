"""From documents to filled fields: what each one needs, what the model says, what is written.

`prepare` reads nothing and writes no document, `finish` does the writing; a scan runs the two side
by side. A document whose input moved in between is read again and computed again.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection
from pymongo.database import Database

from superduper.imputations.corrections import Correction, Corrections, Touch, corrections_in
from superduper.imputations.counters import Counters
from superduper.imputations.decide import RAW, Work, decide
from superduper.imputations.echoes import Echoes
from superduper.imputations.failures import (
    KILLED,
    MAX_ATTEMPTS,
    PUT_OFF,
    Case,
    Failures,
    Known,
    key_of,
    known_to_all,
    stands,
)
from superduper.imputations.fill import removal_of, write
from superduper.imputations.graph import Graph, inputs_of
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.isolate import Isolation
from superduper.imputations.judge import judge
from superduper.imputations.layers import Layers
from superduper.imputations.provenance import FILL, as_one_value, fill_of, input_hash
from superduper.imputations.writing import Batch, Prepared
from superduper.store.by_id import find_by_ids

ROUNDS = 6


class Look(NamedTuple):
    """Documents, and what was known of failures with them after they had been read."""

    documents: Sequence[RawBSONDocument]
    known: Known


class Filler:
    """Fills fields for one imputation with one version of its model.

    Of the imputations in `graph`, this one reads values that it may have to wait for.
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
        graph: Graph | None = None,
    ) -> None:
        self.echoes = echoes
        self.record = record
        self.graph = graph or Graph([record])
        self.isolation = isolation
        self.clock = clock
        self.counters = counters
        self.failures = Failures(database, record.id)
        self.layers = Layers(database, record.id)
        self.corrections = Corrections(database, record.id)
        self.collection: Collection[Any] = database[record.collection].with_options(RAW)

    def read(self, document_ids: Sequence[Any]) -> list[RawBSONDocument]:
        """The documents as they are now, of those that the imputation's filter admits."""
        also = self.record.spec.get("filter")
        return list(find_by_ids(self.collection, document_ids, self.projection, also))

    @property
    def projection(self) -> dict[str, int] | None:
        """The fields by which is told what a document needs; None for all of them."""
        return self.graph.projection(self.record)

    def fill_ids(
        self, document_ids: Sequence[Any], touched: Mapping[bytes, Touch] | None = None
    ) -> None:
        """Bring these documents up to date.

        `touched` tells when a person wrote a field that we fill, by `key_of` the document.
        """
        self.finish(self.prepare_ids(document_ids, touched))

    def prepare_ids(
        self,
        document_ids: Sequence[Any],
        touched: Mapping[bytes, Touch] | None = None,
        look: Look | None = None,
        held_up: Callable[[], None] | None = None,
    ) -> Prepared:
        """Decide and predict for documents that the stream told of.

        `look` is what was read of them just now, if it was. For `held_up` see `Isolation.predict`.
        """
        if touched:
            self._release(corrections_in(self.record, self.read(document_ids), touched))
        look = look or self._look(document_ids)
        works, prepared = self._sort(look)
        self._predict(works, prepared, held_up)
        return prepared

    def prepare(self, documents: Sequence[RawBSONDocument]) -> Prepared:
        """Decide and predict for documents that have just been read, and make the updates."""
        ids = [document["_id"] for document in documents]
        works, prepared = self._sort(Look(documents, self.failures.known(ids)))
        self._predict(works, prepared)
        prepared.batch = Batch([prepared])
        return prepared

    def finish(self, prepared: Prepared, turn: AbstractContextManager[Any] | None = None) -> int:
        """Write what was prepared; documents that changed meanwhile are read and done again.

        Answers how many fields were filled at once, not counting those done again. `turn` is
        entered for as long as the fills are being written.
        """
        self.begin_writing(prepared)
        batch = prepared.batch or Batch([prepared])
        with turn or contextlib.nullcontext():
            batch.send(self.collection, self.echoes)
        return self.end_writing(prepared, batch)

    def begin_writing(self, prepared: Prepared) -> None:
        """What must be done before the fills are written."""
        self._clear(prepared.clearing)
        self._release(prepared.corrected)
        self.layers.keep(prepared.buried())

    def end_writing(self, prepared: Prepared, batch: Batch) -> int:
        """What must be done when the fills were written: see `finish`."""
        filled, unsettled = self._settle(prepared, batch)
        if unsettled:
            self._rounds(unsettled, batch.tried_alone(prepared), prepared.attempts)
        return filled

    def retry(self, failure: Mapping[str, Any]) -> None:
        """Try a document that failed once more, by itself; or one that was only put off."""
        if failure["state"] == PUT_OFF:
            self.fill_ids([failure["document"]])
            return
        works = [decide(self.record, document) for document in self.read([failure["document"]])]
        work = works[0] if works else None
        if work is None:
            self.failures.forget([failure["document"]])
            return
        key = key_of(work.document_id)
        self.isolation.make_ready()
        attempts = self.failures.take_up(failure, work.case, self.clock())
        if attempts is None:
            return
        prepared = Prepared(known={key}, attempts={key: min(attempts, MAX_ATTEMPTS)})
        if attempts > MAX_ATTEMPTS:
            prepared.failed.append((work.case, failure.get("error") or _NEVER_ENDED))
        else:
            value = as_one_value(work.values, self.record.input_paths)
            outcome = self.isolation.alone(value, attempts)
            judge(self.record, work, outcome, prepared, self.clock())
        self.finish(prepared)

    def _look(self, document_ids: Sequence[Any]) -> Look:
        documents = self.read(document_ids)
        # After the documents: a value is taken back by a note first and then by its removal.
        return Look(documents, self.failures.known(document_ids))

    # Until nothing moves ---------------------------------------------------------------------

    def _rounds(
        self, document_ids: Sequence[Any], tried: dict[bytes, str], attempts: Mapping[bytes, int]
    ) -> None:
        """Read, predict and write until every update took effect or was overtaken.

        Each field has an update to itself now: what keeps one from being filled keeps no other.
        """
        insisted: set[bytes] = set()
        for _ in range(ROUNDS - 1):
            works, prepared = self._sort(self._look(document_ids), attempts)
            stuck = {key for key, work in works.items() if tried.get(key) == work.case.input}
            for key in insisted & stuck:
                prepared.failed.append((works.pop(key).case, self._no_effect()))
            insisted |= stuck
            self._predict(works, prepared)
            tried = {key: work.case.input for key, work in works.items()}
            self.begin_writing(prepared)
            batch = Batch([prepared], apart=True, exact=stuck)
            batch.send(self.collection, self.echoes)
            _, document_ids = self._settle(prepared, batch)
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
        look: Look,
        attempts: Mapping[bytes, int] | None = None,
    ) -> tuple[dict[bytes, Work], Prepared]:
        """The documents to predict for; those that failed before or are done are left out."""
        documents, known = look
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
            if self.graph.waits(self.record, document):  # a fill brings it up again
                if failure is not None and failure["state"] == PUT_OFF:
                    prepared.put_off.append(work.case)
                continue
            if work.input_changed and self.record.spec.get("on_input_change") == "clear":
                prepared.clearing.append(work)
            elif failure is not None and _killed_another(failure, work.case):
                prepared.suspects.append(work.case)
            elif failure is None or key in prepared.attempts or not stands(failure, work.case):
                if self._awaits_a_blank(document):
                    prepared.put_off.append(work.case)
                else:
                    works[key] = work
        prepared.settled = [each["document"] for key, each in known.items() if key not in needy]
        return works, prepared

    def _awaits_a_blank(self, document: RawBSONDocument) -> bool:
        """Whether an input is about to be computed anew, once a blank before it is filled.

        Nothing of what was tried in vain for the blank, or taken back, may stand: it stays blank
        then. Whoever tries it later does not know who waits, who therefore looks again by himself.
        """
        before = {each.id: each for each in self.graph.blanks_before(self.record, document)}
        if not before:
            return False
        database, document_id = self.collection.database, document["_id"]
        known = known_to_all(database, before, [document_id])
        key = key_of(document_id)
        return any(
            (work := decide(record, document)) is not None
            and not (key in known[name] and stands(known[name][key], work.case))
            for name, record in before.items()
        )

    def _predict(
        self,
        works: Mapping[bytes, Work],
        prepared: Prepared,
        held_up: Callable[[], None] | None = None,
    ) -> None:
        if not works:
            return
        keys = list(works)

        def count_attempt(position: int) -> None:
            key = keys[position]
            prepared.attempts[key] = self.failures.begin(works[key].case, self.clock())
            prepared.known.add(key)

        values = [as_one_value(work.values, self.record.input_paths) for work in works.values()]
        outcomes = self.isolation.predict(values, count_attempt, held_up)
        at = self.clock()
        for work, outcome in zip(works.values(), outcomes, strict=True):
            judge(self.record, work, outcome, prepared, at)

    # Writing ---------------------------------------------------------------------------------

    def _settle(self, prepared: Prepared, batch: Batch) -> tuple[int, list[Any]]:
        """Count and note; how many were filled, and which documents may need another round."""
        filled = batch.filled(prepared)
        if filled is None:
            filled = self._count_filled(prepared)
        self.counters.add("filled", filled)
        self.counters.add("superseded", batch.possible(prepared) - filled)
        self._note(prepared)
        if not batch.complete:
            again = [*prepared.unrefused().values(), *self._forget(prepared.settled)]
        else:
            forgotten = self._forget(prepared.settled + prepared.known_fills())
            again = [*self._moved(prepared), *forgotten]
        return filled, list({key_of(each): each for each in again}.values())

    def _forget(self, document_ids: list[Any]) -> list[Any]:
        """Drop records that are out of date; the documents that need something after all.

        Between our write and this a person may have changed one, and whoever was told of that have
        left it to the record, which said that it would be tried again.
        """
        if not document_ids:
            return []
        self.failures.forget(document_ids)
        return [
            document["_id"]
            for document in self.read(document_ids)
            if decide(self.record, document) is not None
        ]

    def _count_filled(self, prepared: Prepared) -> int:
        """How many fills are there to be seen, where the server tells of whole updates only."""
        found = self.read(list(prepared.unrefused().values()))
        there = {key_of(document["_id"]): document for document in found}
        records = (
            fill_of(there.get(key_of(fill.document_id), {}), fill.target)
            for _, fill in prepared.fills
        )
        pairs = zip(records, prepared.fills, strict=True)
        return sum(found is not None and dict(found) == fill.record for found, (_, fill) in pairs)

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

    def _note(self, prepared: Prepared) -> None:
        now = self.clock()
        by_attempts: dict[int, list[tuple[Case, Mapping[str, Any]]]] = {}
        for case, error in prepared.failed:
            attempts = prepared.attempts.get(key_of(case.document_id), 1)
            by_attempts.setdefault(attempts, []).append((case, error))
        for attempts, failed in by_attempts.items():
            self.failures.fail(failed, attempts, now)
        self.failures.withhold(prepared.withheld, now)
        self.failures.leave_blank(prepared.without_value, now)
        self.failures.turn_away(prepared.outside, now)
        self.failures.suspect(prepared.suspects)
        self.failures.put_off(prepared.put_off, now)
        self.counters.add("failed", len(prepared.failed))
        self.counters.add("withheld", len(prepared.withheld))
        self.counters.add("no_value", len(prepared.without_value))
        self.counters.add("out_of_domain", len(prepared.outside))

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


def _killed_another(failure: Mapping[str, Any], case: Case) -> bool:
    """Whether the same input took the process of another version along: no batch should have it."""
    if failure["input"] != case.input or failure["version"] == case.version:
        return False
    return (failure.get("error") or {}).get("type") in KILLED
