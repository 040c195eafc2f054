"""One batch of changes, worked through for all imputations of a collection that it concerns.

Five watchers of one collection are told of the same insert. They share a look at which versions
are live, one at the document and one at failures with it, and what they fill goes into one update:
so they are done sooner, and the next insert finds the store free.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pymongo.collection import Collection

from superduper.imputations.decide import projection_of
from superduper.imputations.failures import key_of, known_to_all
from superduper.imputations.graph import Graph
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.process import Filler, Look
from superduper.imputations.watching.events import Call
from superduper.imputations.writing import Batch, Prepared
from superduper.store.by_id import find_by_ids

# A slow model must not make the next one act upon an old look at which versions are live.
FRESH_SECONDS = 0.1
# Nor must others wait for it for longer than this to see their values written.
JOIN_SECONDS = 0.3

Blaming = Callable[[ImputationRecord], AbstractContextManager[None]]
"""Within it an error is laid at an imputation's door, if it is its fault."""


class Turn:
    """What imputations share while a batch of changes is worked through for one after another."""

    def __init__(
        self,
        imputations: Imputations,
        collection: Collection[Any],
        calls: Sequence[Call],
        blaming: Blaming,
        graph: Graph,
    ) -> None:
        self._imputations = imputations
        self._collection = collection
        self._blaming = blaming
        self._graph = graph
        self._calls = [call for call in calls if call.ids and not _reads_itself(call)]
        self._records: list[ImputationRecord] = []
        self._looked_at = -math.inf
        self._looks: dict[tuple[bytes, ...], dict[str, Look]] = {}
        self._parts: list[tuple[Filler, Prepared]] = []
        self._began_at = -math.inf

    def live(self, record: ImputationRecord) -> ImputationRecord | None:
        """The imputation as it is now, for the version that fills; None if it is not to fill."""
        if time.monotonic() - self._looked_at > FRESH_SECONDS:
            self._looked_at = time.monotonic()
            self._records = self._imputations.find(record.collection)
        return next((now for now in self._records if now.id == record.id and now.filling), None)

    def look(self, call: Call) -> Look | None:
        """The documents of a call as they are now; None: nobody shares them, read them yourself."""
        wanted = _keys(call)
        sharing = [other.record for other in self._calls if _keys(other) == wanted]
        if _reads_itself(call) or len(sharing) < 2:
            return None
        if wanted not in self._looks:
            self._looks[wanted] = self._read(call.ids, sharing)
        return self._looks[wanted][call.record.id]

    def _read(
        self, document_ids: Sequence[Any], sharing: Sequence[ImputationRecord]
    ) -> dict[str, Look]:
        read = self._read_for(sharing)
        documents = list(find_by_ids(self._collection, document_ids, read))
        # After the documents: a value is taken back by a note first and then by its removal.
        names = [record.id for record in sharing]
        known = known_to_all(self._collection.database, names, document_ids)
        return {name: Look(documents, known[name]) for name in names}

    def _read_for(self, records: Sequence[ImputationRecord]) -> dict[str, int] | None:
        """The fields that are read for some imputations and for those that they may wait for."""
        return projection_of([each for one in records for each in self._graph.upstream(one)])

    # Filling ---------------------------------------------------------------------------------

    def fill(self, filler: Filler, call: Call) -> None:
        """Predict for the documents of a call; they are written with what others fill in them."""
        now = time.monotonic()
        if now + filler.isolation.patience.expected(len(call.ids)) > self._began_at + JOIN_SECONDS:
            self.write()
            self._began_at = now
        prepared = filler.prepare_ids(call.ids, call.touched, self.look(call), self.write)
        self._parts.append((filler, prepared))

    def write(self) -> None:
        """Write what is ready; who comes after this looks anew."""
        parts, self._parts = self._parts, []
        self._looks.clear()
        begun: list[tuple[Filler, Prepared]] = []
        for filler, prepared in parts:
            with self._blaming(filler.record):
                filler.begin_writing(prepared)
                begun.append((filler, prepared))
        if not begun:
            return
        batch = Batch([prepared for _, prepared in begun])
        batch.send(self._collection, begun[0][0].echoes)
        for filler, prepared in begun:
            with self._blaming(filler.record):
                filler.end_writing(prepared, batch)


def _reads_itself(call: Call) -> bool:
    """Whether the documents are chosen by a filter, or read to see what a person did."""
    return bool(call.touched or call.record.spec.get("filter"))


def _keys(call: Call) -> tuple[bytes, ...]:
    return tuple(key_of(each) for each in call.ids)
