"""A person who changes a value that we filled makes it theirs: its provenance is taken away.

Without provenance a value is never replaced, and a fit may learn from it. Another value is told by
its hash. The same value, set again by a person as a confirmation, is told by a change that touches
the field and not its provenance.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne

from superduper.fields import paths
from superduper.imputations.failures import key_of
from superduper.imputations.fill import guarded
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import FILL, fill_of, fill_path, value_hash

SECOND = 1000


def releases(
    record: ImputationRecord,
    documents: Iterable[RawBSONDocument],
    touched: Mapping[bytes, int] | None = None,
) -> list[UpdateOne]:
    """The updates that give corrected values to their authors.

    `touched` has the time at which a person last wrote the field, by `key_of` the document.
    """
    updates = []
    for document in documents:
        for path in record.write_paths:
            fill = fill_of(document, path)
            if fill is None or fill.get("imputation") != record.name:
                continue
            at = touched.get(key_of(document["_id"])) if touched else None
            if _is_a_persons(document, path, fill, at):
                updates.append(_release(document, path, fill))
    return updates


def _is_a_persons(
    document: Mapping[str, Any], path: str, fill: Mapping[str, Any], touched_at: int | None
) -> bool:
    value = paths.get(document, path)
    if value is paths.MISSING:
        return False
    if value_hash(value) != fill["value"]:
        return True
    if touched_at is None:
        return False
    # A server that tells no milliseconds tells the second that had begun.
    latest = touched_at if touched_at % SECOND else touched_at + SECOND - 1
    return bool(fill.get("at", 0) <= latest)


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
