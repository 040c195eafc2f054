"""What several imputations want to know at the same moment, asked of the database only once.

Five watchers of one collection are told of the same insert. Where they share a look at which
versions are live and at the document itself, they are done sooner, and the next insert finds the
store free.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection

from superduper.imputations.decide import projection_of
from superduper.imputations.events import Call
from superduper.imputations.failures import key_of
from superduper.imputations.imputation import ImputationRecord, Imputations

# A slow model must not make the next one act upon an old look.
FRESH_SECONDS = 0.1


class Turn:
    """One batch of changes, as it is worked through for one imputation after another."""

    def __init__(
        self, imputations: Imputations, collection: Collection[Any], calls: Sequence[Call]
    ) -> None:
        self._imputations = imputations
        self._collection = collection
        self._calls = [call for call in calls if call.ids and not _reads_itself(call)]
        self._records: list[ImputationRecord] = []
        self._looked_at = -math.inf
        self._documents: dict[tuple[bytes, ...], list[RawBSONDocument]] = {}
        self._read_at = -math.inf

    def live(self, record: ImputationRecord) -> ImputationRecord | None:
        """The imputation as it is now, for the version that fills; None if it is not to fill."""
        if time.monotonic() - self._looked_at > FRESH_SECONDS:
            self._looked_at = time.monotonic()
            self._records = self._imputations.find(record.collection)
        return next((now for now in self._records if now.id == record.id and now.filling), None)

    def documents(self, call: Call) -> list[RawBSONDocument] | None:
        """The documents of a call as they are now; None: nobody shares them, read them yourself."""
        wanted = _keys(call)
        sharing = [other.record for other in self._calls if _keys(other) == wanted]
        if _reads_itself(call) or len(sharing) < 2:
            return None
        if time.monotonic() - self._read_at > FRESH_SECONDS:
            self._documents.clear()
            self._read_at = time.monotonic()
        if wanted not in self._documents:
            found = self._collection.find({"_id": {"$in": call.ids}}, projection_of(sharing))
            self._documents[wanted] = list(found)
        return self._documents[wanted]


def _reads_itself(call: Call) -> bool:
    """Whether the documents are chosen by a filter, or read to see what a person did."""
    return bool(call.touched or call.record.spec.get("filter"))


def _keys(call: Call) -> tuple[bytes, ...]:
    return tuple(key_of(each) for each in call.ids)
