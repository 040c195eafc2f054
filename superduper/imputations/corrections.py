"""A person who changes a value that we filled makes it theirs: its provenance is taken away.

Without provenance a value is never replaced, and a fit may learn from it. Another value is told by
its hash. The same value, set again by a person as a confirmation, is told by a change that sets it
and touches not its provenance. That the field was touched would not do: a value that a person set
and took away again may have been filled by now with what had been computed before.

Each correction is noted before the provenance goes, in `superduper.corrections`: a worker that is
killed in between notes the same once more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.database import Database

from superduper.fields import paths
from superduper.imputations.failures import key_of
from superduper.imputations.fill import guarded
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import FILL, fill_of, fill_path, input_hash, value_hash

NAME = "superduper.corrections"
SECOND = 1000


class Touch(NamedTuple):
    """A person's write to a field that we fill: when (ms), and the values, if they were small."""

    at: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Correction:
    """A value that we filled and a person made theirs, and the update that leaves it to them."""

    document_id: Any
    path: str
    fill: Mapping[str, Any]
    how: Literal["changed", "confirmed"]
    release: UpdateOne


def corrections_in(
    record: ImputationRecord,
    documents: Iterable[RawBSONDocument],
    touched: Mapping[bytes, Touch] | None = None,
) -> list[Correction]:
    """The values of an imputation's that people have made theirs.

    `touched` tells how a person last wrote the field, by `key_of` the document.
    """
    found = []
    for document in documents:
        for path in record.write_paths:
            fill = fill_of(document, path)
            if fill is None or fill.get("imputation") != record.name:
                continue
            touch = touched.get(key_of(document["_id"])) if touched else None
            how = _corrected(document, path, fill, touch)
            if how is not None:
                release = _release(document, path, fill)
                found.append(Correction(document["_id"], path, fill, how, release))
    return found


def _corrected(
    document: Mapping[str, Any], path: str, fill: Mapping[str, Any], touch: Touch | None
) -> Literal["changed", "confirmed"] | None:
    value = paths.get(document, path)
    if value is paths.MISSING:
        return None
    if value_hash(value) != fill["value"]:
        return "changed"
    if touch is None:
        return None
    if path in touch.values and value_hash(touch.values[path]) != fill["value"]:
        return None  # it was another one, which is gone
    # A server that tells no milliseconds tells the second that had begun.
    latest = touch.at if touch.at % SECOND else touch.at + SECOND - 1
    return "confirmed" if fill.get("at", 0) <= latest else None


def _release(document: Mapping[str, Any], path: str, fill: Mapping[str, Any]) -> UpdateOne:
    """Take a value's provenance away if it still is what was read; no empty `_fill` is left."""
    only = _is_only(document[FILL], path.split("."))
    place, now = (FILL, document[FILL]) if only else (fill_path(path), fill)
    filter, _ = guarded(document["_id"], {place: now})
    return UpdateOne(filter, {"$unset": {place: ""}})


def _is_only(provenance: Mapping[str, Any], segments: list[str]) -> bool:
    place: Any = provenance
    for segment in segments:
        if len(place) != 1:
            return False
        place = place[segment]
    return True


# What is kept of them ------------------------------------------------------------------------


class Corrections:
    """The corrections of one imputation's values, as a list that grows."""

    def __init__(self, database: Database[Any], imputation_id: str) -> None:
        self.imputation_id = imputation_id
        self.records: Collection[Any] = database[NAME]

    def note(self, corrections: Sequence[Correction], now: int) -> None:
        """Add corrections; those that are there already stay as they are."""
        updates = [
            UpdateOne(
                {"_id": input_hash([self.imputation_id, each.document_id, each.fill])},
                {
                    "$setOnInsert": {
                        "imputation": self.imputation_id,
                        "document": each.document_id,
                        "field": each.path,
                        "how": each.how,
                        "version": each.fill.get("version"),
                        "confidence": each.fill.get("confidence"),
                        "filled_at": each.fill.get("at"),
                        "at": now,
                    }
                },
                upsert=True,
            )
            for each in corrections
        ]
        if updates:
            self.records.bulk_write(updates, ordered=False)

    def count(self) -> int:
        """How many there are."""
        return self.records.count_documents({"imputation": self.imputation_id})

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """The latest ones first, as users see them."""
        shown = ("document", "field", "how", "version", "confidence", "filled_at", "at")
        found = self.records.find({"imputation": self.imputation_id})
        rows = found.sort([("at", -1), ("_id", -1)]).limit(limit)
        return [{name: row.get(name) for name in shown} for row in rows]

    def forget(self) -> None:
        """Drop them all."""
        self.records.delete_many({"imputation": self.imputation_id})


def prepare(database: Database[Any]) -> None:
    """Make the indexes: by document, and by time."""
    database[NAME].create_index([("imputation", 1), ("document", 1)])
    database[NAME].create_index([("imputation", 1), ("at", -1)])
