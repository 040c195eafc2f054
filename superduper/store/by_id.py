"""Documents by their `_id`, also where ids are documents themselves.

The embedded store has no index for an `_id` that is a document: to find one it looks at the whole
collection, for each update anew. So a filter names the parts of such an id as well, which changes
nothing in what it finds, and where a server says that it looks at everything, one of these parts
gets an index of its own.
"""

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bson import ObjectId
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

#: So many ids that are documents must have been met before there is an index for them.
ENOUGH = 32
_PLAIN = (str, bytes, int, ObjectId)


def with_id(document_id: Any) -> dict[str, Any]:
    """The filter for the document with an `_id`; other conditions may be added to it."""
    return {"_id": document_id, **dict(_parts(document_id))}


def find_by_ids(
    collection: Collection[Any],
    document_ids: Iterable[Any],
    projection: Mapping[str, Any] | None = None,
    also: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """The documents with these ids that are there, of those that match `also`; in any order."""
    for wanted in _wanted(document_ids):
        if also is None or not _is_apart(wanted, also):
            yield from collection.find({**wanted, **(also or {})}, projection)
            continue
        # Beside `$or` and its like the embedded store finds no index: it would look at everything.
        # Two stages are one to MongoDB, and the embedded store has few left for the second.
        stages: list[Mapping[str, Any]] = [{"$match": wanted}, {"$match": also}]
        if projection:
            stages.append({"$project": projection})
        yield from collection.aggregate(stages)


def _wanted(document_ids: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Filters for documents by their ids: one for each kind of id."""
    alike: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for document_id in document_ids:
        alike[tuple(path for path, _ in _parts(document_id))].append(document_id)
    for ids in alike.values():
        values: dict[str, list[Any]] = defaultdict(list)
        for path, value in (part for each in ids for part in _parts(each)):
            values[path].append(value)
        yield {"_id": {"$in": ids}, **{path: {"$in": each} for path, each in values.items()}}


def _is_apart(wanted: Mapping[str, Any], also: Mapping[str, Any]) -> bool:
    """Whether a filter cannot stand beside the ids. `$where` is for `find` only."""
    operators = any(key.startswith("$") for key in also)
    return bool(wanted.keys() & also.keys() or operators) and "$where" not in also


def _parts(document_id: Any, path: str = "_id") -> Iterator[tuple[str, Any]]:
    """The paths and values within an id that is a document, where equality is exact."""
    if not isinstance(document_id, Mapping):
        return
    for key, value in document_id.items():
        if not key or "." in key or key.startswith("$"):
            continue
        if isinstance(value, _PLAIN):
            yield f"{path}.{key}", value
        else:
            yield from _parts(value, f"{path}.{key}")


class IdIndex:
    """Makes the index for ids that are documents, on a server that needs one. For all threads."""

    def __init__(self, collection: Collection[Any]) -> None:
        self._collection = collection
        self._met: list[Mapping[str, Any]] = []
        self._settled = False
        self._lock = threading.Lock()

    def meet(self, document_ids: Iterable[Any]) -> None:
        """Take note of ids that documents are going to be found by; raises PyMongoError."""
        if self._settled:
            return
        with self._lock:
            self._met += [each for each in document_ids if isinstance(each, Mapping)]
            if self._settled or len(self._met) < ENOUGH:
                return
            self._settled = True
        if self._is_wanted(self._met[0]) and (path := _most_telling(self._met)):
            self._collection.create_index([(path, 1)])

    def _is_wanted(self, document_id: Any) -> bool:
        """Whether the server looks at every document for such an id, as it says itself."""
        try:
            plan = self._collection.find({"_id": document_id}).explain()
        except OperationFailure:  # who may read may not be allowed to ask how
            return False
        stage = plan.get("queryPlanner", {}).get("winningPlan", {}).get("stage")
        return bool(stage == "COLLSCAN")


def _most_telling(document_ids: Sequence[Mapping[str, Any]]) -> str | None:
    """The path whose values tell the most of these ids apart; None if there is none."""
    values: dict[str, set[Any]] = defaultdict(set)
    for path, value in (part for each in document_ids for part in _parts(each)):
        values[path].add(value)
    return max(values, key=lambda path: len(values[path]), default=None)
