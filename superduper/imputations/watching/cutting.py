"""Cut what is left of a scan into ranges, as many as there are workers to share it.

One worker alone walks one range: a store in a single process reads the whole collection to find
where a range begins. When more workers come, what is left is cut anew, for all of them.

The server samples ids, puts them in order and says between which bounds they lie, because the order
of ids of several types is the server's business.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from superduper.imputations.decide import RAW
from superduper.imputations.failures import key_of
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.watching.ranges import NAME, Bounds, Ranges, left_of

RANGES_PER_WORKER = 4
MOST_RANGES = 64
#: A range of fewer documents is walked sooner than it is taken.
LEAST_DOCUMENTS = 250
MARKS_PER_RANGE = 32
#: So many are sampled to tell how many documents a scan is to look at; fewer are counted.
SAMPLED = 1_000


def cut(
    imputations: Imputations, record: ImputationRecord, workers: int, wanted: Mapping[str, Any]
) -> ImputationRecord | None:
    """Give a scan a new plan for so many workers, from where the last one has got to.

    `wanted` are the documents that it looks at. Answers the record with the plan; None if another
    scan was asked for meanwhile, or another plan made: nothing is changed then.
    """
    collection = imputations.database[record.collection].with_options(RAW)
    ranges = Ranges(imputations, record)
    there, progress = ranges.all(), ranges.progress()
    if there and len(there) == record.scan["ranges"]:
        pieces = [left_of(each) for each in there if not each["done"]]
        documents = int(record.scan["documents"])
    else:
        pieces, documents = [{}], _estimate(collection, wanted)
    pieces = _parted(collection, pieces, _how_many(collection, workers))
    plan = {
        "state": "running",
        "plan": uuid.uuid4().hex,
        "ranges": len(pieces),
        "workers": workers,
        "documents": documents,
        "seen": progress.seen,
        "filled": progress.filled,
    }
    if not _commit(imputations, record, pieces, plan):
        return None
    return replace(record, scan={**record.scan, **plan})


def _how_many(collection: Collection[Any], workers: int) -> int:
    if workers <= 1:
        return 1
    most = min(MOST_RANGES, RANGES_PER_WORKER * workers)
    return min(most, collection.estimated_document_count() // LEAST_DOCUMENTS)


def _estimate(collection: Collection[Any], wanted: Mapping[str, Any]) -> int:
    """About how many documents match; one pass at most, where the server cannot sample."""
    total = collection.estimated_document_count()
    if total <= SAMPLED:
        return collection.count_documents(wanted)
    sample: list[dict[str, Any]] = [{"$sample": {"size": SAMPLED}}, {"$match": wanted}]
    try:
        found = len(list(collection.aggregate([*sample, {"$project": {"_id": 1}}])))
    except OperationFailure:  # a filter that a pipeline does not take: at most all of them
        return total
    return total * found // SAMPLED


def _parted(collection: Collection[Any], pieces: Sequence[Bounds], count: int) -> list[Bounds]:
    """The same bounds in more pieces, about equal by the number of documents."""
    if count <= len(pieces):
        return list(pieces)
    marks = _marks(collection, pieces, MARKS_PER_RANGE * count)
    step = max(1, len(marks) // count)
    cuts: dict[int, list[Any]] = {}
    for piece, mark in marks[step::step][: count - 1]:
        cuts.setdefault(piece, []).append(mark)
    parted: list[Bounds] = []
    for number, bounds in enumerate(pieces):
        ends = [{"end": mark} for mark in cuts.get(number, ())]
        firsts = [{"first": mark} for mark in cuts.get(number, ())]
        begin = {"first": bounds["first"]} if "first" in bounds else {}
        stop = {"end": bounds["end"]} if "end" in bounds else {}
        parted += [
            {**first, **end} for first, end in zip([begin, *firsts], [*ends, stop], strict=True)
        ]
    return parted


def _marks(
    collection: Collection[Any], pieces: Sequence[Bounds], size: int
) -> list[tuple[int, Any]]:
    """Sampled ids in the order of the index, each with the number of the piece it lies within."""
    inside = [{"case": _within(bounds), "then": number} for number, bounds in enumerate(pieces)]
    found = collection.aggregate(
        [
            {"$sample": {"size": size}},
            {"$project": {"piece": {"$switch": {"branches": inside, "default": -1}}}},
            {"$match": {"piece": {"$gte": 0}}},
            {"$sort": {"_id": 1}},
        ]
    )
    marks = [(int(each["piece"]), each["_id"]) for each in found]
    # A server may sample a document twice.
    same = [key_of(one[1]) == key_of(next[1]) for one, next in pairwise(marks)]
    return [mark for mark, again in zip(marks, [*same, False], strict=True) if not again]


def _within(bounds: Bounds) -> dict[str, Any]:
    """Whether an id lies strictly within bounds; these comparisons know all types."""
    parts: list[dict[str, Any]] = []
    if "first" in bounds:
        parts.append({"$gt": ["$_id", {"$literal": bounds["first"]}]})
    if "end" in bounds:
        parts.append({"$lt": ["$_id", {"$literal": bounds["end"]}]})
    return {"$and": parts} if parts else {"$literal": True}


def _commit(
    imputations: Imputations,
    record: ImputationRecord,
    pieces: Sequence[Bounds],
    plan: Mapping[str, Any],
) -> bool:
    """First the ranges, then the plan that names them: nobody sees a part of it."""
    documents = imputations.database[NAME]
    blank = {"imputation": record.id, "plan": plan["plan"], "done": False, "owner": None}
    zero = {"fence": 0, "expires_at": 0, "seen": 0, "filled": 0, "rate": 0.0}
    documents.insert_many(
        {"_id": f"{plan['plan']}/{number}", "number": number, **blank, **zero, **bounds}
        for number, bounds in enumerate(pieces)
    )
    if not imputations.replan(record, plan):
        documents.delete_many({"plan": plan["plan"]})
        return False
    documents.delete_many({"imputation": record.id, "plan": {"$ne": plan["plan"]}})
    return True
