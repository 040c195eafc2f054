"""Write predicted values into documents, so that no person's value is lost and no value is stale.

A fill is one conditional update that writes a value and its provenance together. It takes effect
only if the field is still missing (or still holds our own outdated value) and the inputs still
are what the value was computed from; otherwise it changes nothing. Nothing is ever inserted.

The condition has two forms of the same meaning. Where plain equality in a filter is exact, the
filter says it all: that is the cheaper form. Elsewhere (arrays, null, whole documents) the
comparison is made inside an update pipeline, because `{x: [1]}` also matches `x: [[1], 2]` and
`{x: null}` also matches no `x` at all.

A large input is not sent back to be compared: only its size is, and whoever writes reads the input
again afterwards (`Filler`). What changed in between and kept its size is found then.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import bson
from bson import Decimal128, Int64, ObjectId
from bson.datetime_ms import DatetimeMS
from bson.errors import InvalidDocument
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, DocumentTooLarge, OperationFailure, PyMongoError

from superduper.fields import paths
from superduper.fields.paths import overlap
from superduper.imputations.provenance import BASE, fill_path
from superduper.store.by_id import with_id

# What MongoDB's servers answer when they are in trouble themselves, not when a document is wrong.
SERVER_TROUBLE = frozenset(
    {6, 7, 13, 18, 24, 43, 46, 50, 64, 79, 89, 91, 100, 112, 133, 134, 175, 189, 202, 211, 234}
    | {237, 262, 317, 358, 371, 9001, 10058, 10107, 11600, 11602, 13388, 13435, 13436, 14031}
)
_NUMBERS = {bool: "bool", float: "double", Int64: "long", Decimal128: "decimal"}
_PLAIN = (str, bytes, bool, int, float, Decimal128, ObjectId, datetime.datetime, DatetimeMS)
#: Inputs over this are compared by their size.
LARGE_BYTES = 64 << 10
_NOT_AN_ARRAY = {"$not": {"$type": "array"}}


@dataclass(frozen=True)
class Stale:
    """A value that we wrote earlier, with its provenance; both must still be there."""

    value: Any
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Fill:
    """One value for one field of one document, computed from `inputs` (by path, as they were read).

    The input path `_base` holds the whole document as it was read. A `large` document may have
    inputs that are not sent back.
    """

    document_id: Any
    inputs: Mapping[str, Any]
    target: str
    value: Any
    record: Mapping[str, Any]
    replaces: Stale | None = None
    large: bool = False


@dataclass
class _Condition:
    """What must hold at the moment of the update: operators by path, and pipeline expressions."""

    filter: dict[str, Any]
    expressions: list[dict[str, Any]] = field(default_factory=list)

    def no_arrays_above(self, path: str) -> None:
        """A path means something else to a server where it leads through an array."""
        for ancestor in paths.above(path):
            self._add(ancestor, _NOT_AN_ARRAY)

    def missing(self, path: str) -> None:
        self.no_arrays_above(path)
        self._add(path, {"$exists": False})

    def equal(self, path: str, value: Any, *, exact: bool) -> None:
        if path == BASE:
            self._compare("$$ROOT", value, exact=exact)
            return
        self.no_arrays_above(path)
        if _filter_is_exact(value) and not exact:
            self._add(path, {"$eq": value, **_type_of(value), **_NOT_AN_ARRAY})
        else:
            self._compare(f"${path}", value, exact=exact)

    def alike(self, path: str, value: Any, *, exact: bool) -> None:
        """As many bytes as the value that was read, if they are many; else equal."""
        there: Any = "$$ROOT" if path == BASE else {"value": f"${path}"}
        size = len(bson.encode(value if path == BASE else {"value": value}))
        if size <= LARGE_BYTES:
            self.equal(path, value, exact=exact)
            return
        if path != BASE:
            self.no_arrays_above(path)
        self.expressions.append({"$eq": [{"$bsonSize": there}, size]})

    def _compare(self, expression: str, value: Any, *, exact: bool) -> None:
        literal = {"$literal": value}
        # Dearer, but on the embedded store $eq finds no array with a NaN in it equal to itself.
        ordered = {"$eq": [{"$cmp": [expression, literal]}, 0]}
        self.expressions.append(ordered if exact else {"$eq": [expression, literal]})

    def _add(self, path: str, operators: Mapping[str, Any]) -> None:
        self.filter[path] = {**self.filter.get(path, {}), **operators}


def _filter_is_exact(value: Any) -> bool:
    """Whether `{"$eq": value}` in a filter matches this value only, arrays apart."""
    if isinstance(value, Mapping):
        return not any(key.startswith("$") for key in value)
    return isinstance(value, _PLAIN)


def _type_of(value: Any) -> dict[str, str]:
    """To MongoDB 1 equals 1.0; to a model it need not, so the type of a number is compared too."""
    if type(value) is int:
        return {"$type": "int" if -(2**31) <= value < 2**31 else "long"}
    name = _NUMBERS.get(type(value))
    return {"$type": name} if name else {}


def guarded(
    document_id: Any, equal: Mapping[str, Any], missing: Sequence[str] = (), *, exact: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A filter, and expressions for a pipeline if the filter alone cannot say it all."""
    condition = _Condition(with_id(document_id))
    for path in missing:
        condition.missing(path)
    for path, value in equal.items():
        condition.equal(path, value, exact=exact)
    return condition.filter, condition.expressions


def update_of(*fills: Fill, exact: bool = False) -> UpdateOne:
    """The update that applies fills of one document, all of them or none.

    Its guard is the guards of all. `exact` compares with more care, where it had no effect.
    """
    condition = _Condition(with_id(fills[0].document_id))
    written: dict[str, Any] = {}
    inputs: dict[str, tuple[Any, bool]] = {}
    for fill in fills:
        provenance = fill_path(fill.target)
        written |= {fill.target: fill.value, provenance: fill.record}
        inputs |= {path: (value, fill.large) for path, value in fill.inputs.items()}
        if fill.replaces is None:
            condition.missing(fill.target)
        else:
            condition.equal(fill.target, fill.replaces.value, exact=exact)
            condition.equal(provenance, fill.replaces.record, exact=exact)
    for path, (value, large) in inputs.items():
        if large:
            condition.alike(path, value, exact=exact)
        else:
            condition.equal(path, value, exact=exact)
    if not condition.expressions:
        return UpdateOne(condition.filter, {"$set": written})
    return UpdateOne(condition.filter, [_conditional_merge(written, condition.expressions)])


def may_join(fill: Fill, others: Sequence[Fill]) -> bool:
    """Whether a fill can be in one update with others of its document.

    None may be computed from what another one changes, and what two of them were computed from
    must have been read at the same moment.
    """
    return all(_go_together(fill, other) for other in others)


def _go_together(one: Fill, other: Fill) -> bool:
    if one.record["imputation"] == other.record["imputation"]:
        return True
    if _reads(one, other.target) or _reads(other, one.target):
        return False
    return all(one.inputs[path] is other.inputs[path] for path in one.inputs.keys() & other.inputs)


def _reads(fill: Fill, path: str) -> bool:
    return any(source == BASE or overlap(source, path) for source in fill.inputs)


def _conditional_merge(
    written: Mapping[str, Any], expressions: list[dict[str, Any]]
) -> dict[str, Any]:
    # $mergeObjects would put a document in the place of null, or fail the whole batch.
    places = dict.fromkeys(place for path in written for place in paths.above(path))
    holdable = [{"$in": [{"$type": f"${place}"}, ["object", "missing"]]} for place in places]
    merged = {"$mergeObjects": ["$$ROOT", _merge(written)]}
    return {"$replaceWith": {"$cond": [{"$and": [*expressions, *holdable]}, merged, "$$ROOT"]}}


def _merge(written: Mapping[str, Any], place: str = "$") -> dict[str, Any]:
    """An expression for the document at a place as it is, but with these values at their paths."""
    parts: dict[str, dict[str, Any]] = {}
    for path, value in written.items():
        head, _, rest = path.partition(".")
        parts.setdefault(head, {})[rest] = value
    return {
        head: {"$literal": part[""]}
        if "" in part
        else {"$mergeObjects": [f"{place}{head}", _merge(part, f"{place}{head}.")]}
        for head, part in parts.items()
    }


def removal_of(document_id: Any, path: str, ours: Stale) -> UpdateOne:
    """The update that takes back a value of ours, if it and its provenance still are there."""
    condition = _Condition(with_id(document_id))
    condition.equal(fill_path(path), ours.record, exact=False)
    condition.no_arrays_above(path)
    # Dearer than the forms above, but exact for every type without a pipeline.
    same = {"$eq": ours.value, "$not": {"$elemMatch": {"$eq": ours.value}}}
    condition.filter[path] = same
    return UpdateOne(condition.filter, {"$unset": {path: "", fill_path(path): ""}})


# Writing -------------------------------------------------------------------------------------


@dataclass
class Written:
    """How many updates took effect, and the errors of those that can never, by position."""

    modified: int = 0
    errors: dict[int, dict[str, str]] = field(default_factory=dict)


def write(collection: Collection[Any], updates: Sequence[UpdateOne]) -> Written:
    """Send updates in one batch; a document that cannot be written fails alone.

    Raises PyMongoError if the database is in trouble: everything may be sent again then.
    """
    if not updates:
        return Written()
    try:
        return Written(collection.bulk_write(updates, ordered=False).modified_count)
    except BulkWriteError as error:
        return _partly_written(error)
    except (DocumentTooLarge, InvalidDocument, OverflowError) as error:
        return _one_by_one(collection, updates, error)
    except OperationFailure as error:
        if is_server_trouble(error):
            raise
        return _one_by_one(collection, updates, error)


def is_server_trouble(error: PyMongoError) -> bool:
    """Whether an error is the server's own, and the same may go well another time."""
    return (
        getattr(error, "code", None) in SERVER_TROUBLE
        or error.has_error_label("RetryableWriteError")
        or error.has_error_label("TransientTransactionError")
    )


def _partly_written(error: BulkWriteError) -> Written:
    details = error.details
    refused = details.get("writeErrors", [])
    troubled = any(each.get("code") in SERVER_TROUBLE for each in refused)
    if troubled or details.get("writeConcernErrors"):
        raise error
    errors = {
        each["index"]: {"type": "WriteError", "message": str(each.get("errmsg"))[:1000]}
        for each in refused
    }
    return Written(details.get("nModified", 0), errors)


def _one_by_one(
    collection: Collection[Any], updates: Sequence[UpdateOne], error: Exception
) -> Written:
    if len(updates) == 1:
        # An aggregation that fails on one document fails its whole command on some servers.
        return Written(0, {0: {"type": type(error).__name__, "message": str(error)[:1000]}})
    total = Written()
    for position, update in enumerate(updates):
        one = write(collection, [update])
        total.modified += one.modified
        if one.errors:
            total.errors[position] = one.errors[0]
    return total
