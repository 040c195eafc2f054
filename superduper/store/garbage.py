"""Remove artifacts and blobs that nothing refers to, without taking what is being referred to now.

Whoever makes a reference then calls `spare`; whoever collects marks first, then looks whether there
is a reference, then removes what still is marked. In whatever order these meet, either the
collector sees the reference, or the other finds its document gone and puts it back.
"""

import datetime
from collections.abc import Callable, Mapping
from typing import Any

from bson.objectid import ObjectId
from pymongo.collection import Collection
from pymongo.database import Database

from superduper.store.mongo import server_now_ms

MARK = "doomed"
_HOUR_MS = 3_600_000

Documents = Collection[dict[str, Any]]


def spare(documents: Documents, where: Mapping[str, Any]) -> dict[str, Any] | None:
    """A document that from now on is not garbage, as it was; None if there is none."""
    return documents.find_one_and_update(dict(where), {"$unset": {MARK: ""}})


def collect(database: Database[Any], bucket: str, min_age_hours: float) -> int:
    """Remove records that no component names, blobs that no record names, and torn uploads.

    All must be older than `min_age_hours`. Answers how many blobs were removed.
    """
    before = server_now_ms(database) - int(min_age_hours * _HOUR_MS)
    records, files = database[bucket], database[f"{bucket}.files"]
    chunks, components = database[f"{bucket}.chunks"], database["superduper.components"]

    components.create_index("artifact")
    components.create_index("weights")
    components.create_index("domain")
    records.create_index("blob")

    def is_named(record_id: Any) -> bool:
        where = {"$or": [{part: record_id} for part in ("artifact", "weights", "domain")]}
        return components.find_one(where, {"_id": 1}) is not None

    for record in records.find({"record.created_at": {"$lt": before}}, {"_id": 1}):
        _remove(records, record["_id"], is_named)
    removed = 0
    moment = datetime.datetime.fromtimestamp(before / 1000, datetime.UTC)
    for file in files.find({"uploadDate": {"$lt": moment}}, {"_id": 1}):
        if _remove(files, file["_id"], lambda blob: records.find_one({"blob": blob}) is not None):
            chunks.delete_many({"files_id": file["_id"]})
            removed += 1
    return removed + remove_torn(files, chunks, moment)


def _remove(documents: Documents, key: Any, is_named: Callable[[Any], bool]) -> bool:
    if is_named(key):
        return False
    documents.update_one({"_id": key}, {"$set": {MARK: True}})
    if is_named(key):
        spare(documents, {"_id": key})
        return False
    return documents.delete_one({"_id": key, MARK: True}).deleted_count == 1


def remove_torn(files: Documents, chunks: Documents, moment: datetime.datetime) -> int:
    """Remove the chunks of uploads that a crash interrupted: they have no file."""
    removed = 0
    for chunk in chunks.find({"n": 0, "files_id": {"$lt": ObjectId.from_datetime(moment)}}):
        blob = chunk["files_id"]
        if files.find_one({"_id": blob}, {"_id": 1}) is None:
            chunks.delete_many({"files_id": blob})
            removed += 1
    return removed
