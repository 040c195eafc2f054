"""Take back what a version filled, where its value still stands."""

from typing import Any

from pymongo import UpdateOne
from pymongo.database import Database

from superduper.fields import paths
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import is_ours

BATCH = 500


def revert_version(database: Database[Any], record: ImputationRecord, version: int) -> int:
    """Remove the values that a version filled and that nobody changed since; answers how many.

    Each removal is one conditional update, so a value that a person writes at the same moment
    stays. Runs in bounded memory and may be run again after an interruption.
    """
    collection = database[record.collection]
    reverted = 0
    for path in record.write_paths:
        mine = {f"_fill.{path}.imputation": record.name, f"_fill.{path}.version": version}
        found = collection.find(mine, {path: 1, f"_fill.{path}": 1}, batch_size=BATCH)
        batch: list[UpdateOne] = []
        for document in found:
            if is_ours(document, path):
                batch.append(_removal(document, path))
            if len(batch) == BATCH:
                reverted += collection.bulk_write(batch, ordered=False).modified_count
                batch = []
        if batch:
            reverted += collection.bulk_write(batch, ordered=False).modified_count
    return reverted


def _removal(document: dict[str, Any], path: str) -> UpdateOne:
    """Unset the value and its provenance if both are still as they were read."""
    value, fill = paths.get(document, path), paths.get(document, f"_fill.{path}")
    guard = {
        "_id": document["_id"],
        path: {"$eq": value},
        f"_fill.{path}.at": fill["at"],
        f"_fill.{path}.value": fill["value"],
    }
    return UpdateOne(guard, {"$unset": {path: "", f"_fill.{path}": ""}})
