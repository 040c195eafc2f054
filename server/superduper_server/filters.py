"""What of MongoDB's query and update languages is taken over HTTP: an allow-list, not a deny-list.

Operators that run code, reach other collections or match by regular expression are not on it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bson import Code, DBRef, Regex

from superduper.command import Command
from superduper.errors import InvalidInput
from superduper.fields.json import EXTENDED, from_json

MAX_FILTER_DEPTH = 16
MAX_DOCUMENT_DEPTH = 64

LOGICAL = frozenset({"$and", "$or", "$nor"})
COMPARISONS = frozenset({"$eq", "$ne", "$gt", "$gte", "$lt", "$lte"})
LISTS = frozenset({"$in", "$nin", "$all"})
OPERATORS = COMPARISONS | LISTS | {"$exists", "$type", "$size", "$not", "$elemMatch"}
UPDATES = frozenset(
    {
        *("$set", "$unset", "$inc", "$mul", "$min", "$max", "$push", "$addToSet", "$pull"),
        *("$rename", "$setOnInsert", "$currentDate"),
    }
)
PUSH_MODIFIERS = frozenset({"$each", "$slice", "$sort", "$position"})
POSITIONS = re.compile(r"\$|\$\[\]")

# Fields of commands in which keys that start with `$` are operators, not extended JSON.
OPERATOR_FIELDS = frozenset({"filter", "update", "projection"})


def read_operators(value: Any, depth: int = 0) -> Any:
    """The BSON value of JSON that may hold operators beside extended JSON.

    Raises InvalidInput that names a key with `$` that is neither.
    """
    if depth > MAX_DOCUMENT_DEPTH:
        raise InvalidInput(f"deeper than {MAX_DOCUMENT_DEPTH} levels")
    if isinstance(value, list):
        return [read_operators(each, depth + 1) for each in value]
    if not isinstance(value, dict):
        return from_json(value)
    others = [key for key in value if key.startswith("$") and key not in _KNOWN]
    if others and others[0] not in EXTENDED:
        raise _refused(others[0], "a filter, update or projection", _KNOWN)
    if others:
        return from_json(value)
    return {key: read_operators(each, depth + 1) for key, each in value.items()}


_KNOWN = OPERATORS | LOGICAL | UPDATES | PUSH_MODIFIERS


def check_filter(filter: Any, depth: int = 0) -> None:
    """A query filter.

    Raises InvalidInput that names the operator that is not taken.
    """
    _check_depth(depth)
    if not isinstance(filter, Mapping):
        raise InvalidInput("a filter must be an object")
    for key, value in filter.items():
        if key in LOGICAL:
            for part in _non_empty_list(key, value):
                check_filter(part, depth + 1)
        elif key.startswith("$"):
            raise _refused(key, "a filter", OPERATORS | LOGICAL)
        else:
            _check_path(key)
            _check_condition(value, depth + 1)


def _check_condition(value: Any, depth: int) -> None:
    _check_depth(depth)
    if not (isinstance(value, Mapping) and any(key.startswith("$") for key in value)):
        _check_literal(value)
        return
    for key, operand in value.items():
        if key not in OPERATORS:
            raise _refused(key, "a filter", OPERATORS)
        _check_operand(key, operand, depth)


def _check_operand(key: str, operand: Any, depth: int) -> None:
    if key == "$not":
        if not isinstance(operand, Mapping):
            raise InvalidInput("$not needs an object of operators")
        _check_condition(operand, depth + 1)
    elif key == "$elemMatch":
        if isinstance(operand, Mapping) and any(k in OPERATORS for k in operand):
            _check_condition(operand, depth + 1)
        else:
            check_filter(operand, depth + 1)
    elif key in LISTS:
        for each in _list(key, operand):
            _check_literal(each)
    else:
        _check_literal(operand)


def check_update(update: Any) -> None:
    """An update: operators of the allow-list only, no pipeline.

    Raises InvalidInput that names the operator that is not taken.
    """
    if not isinstance(update, Mapping):
        raise InvalidInput("over HTTP an update is an object of operators, not a pipeline")
    if not update:
        raise InvalidInput("the update is empty: pass operators such as $set")
    for operator, changes in update.items():
        if operator not in UPDATES:
            raise _refused(operator, "an update", UPDATES)
        if not isinstance(changes, Mapping):
            raise InvalidInput(f"{operator} needs an object of fields")
        for path, value in changes.items():
            _check_path(path)
            _UPDATE_VALUES.get(operator, _check_literal)(value)


def _check_added(value: Any) -> None:
    if not (isinstance(value, Mapping) and any(key.startswith("$") for key in value)):
        _check_literal(value)
        return
    for key, each in value.items():
        if key not in PUSH_MODIFIERS:
            raise _refused(key, "an update", PUSH_MODIFIERS)
        _check_literal(each)


def _check_pulled(value: Any) -> None:
    if isinstance(value, Mapping) and not any(key in OPERATORS for key in value):
        check_filter(value)
    else:
        _check_condition(value, 0)


def _check_current_date(value: Any) -> None:
    if value is not True and value not in ({"$type": "date"}, {"$type": "timestamp"}):
        raise InvalidInput('$currentDate needs true, {"$type": "date"} or {"$type": "timestamp"}')


def _check_new_name(value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidInput("$rename needs the new name of the field")
    _check_path(value)


_UPDATE_VALUES: dict[str, Callable[[Any], None]] = {
    "$push": _check_added,
    "$addToSet": _check_added,
    "$pull": _check_pulled,
    "$currentDate": _check_current_date,
    "$rename": _check_new_name,
}


def check_document(document: Any) -> None:
    """A document to be stored: no key that starts with `$`, not too deep.

    Raises InvalidInput that names the key.
    """
    _check_plain(document, 1, refused=())


def check_projection(projection: Any) -> None:
    """A projection: fields in or out, `$slice` and `$elemMatch`; no expressions."""
    if not isinstance(projection, Mapping):
        for path in projection:
            _check_path(path)
        return
    for path, value in projection.items():
        _check_path(path)
        if isinstance(value, bool) or value in (0, 1):
            continue
        if not isinstance(value, Mapping) or len(value) != 1:
            raise InvalidInput("a projection's values are 0, 1, $slice or $elemMatch")
        (operator, operand), *_ = value.items()
        if operator == "$elemMatch":
            check_filter(operand)
        elif operator == "$slice":
            _check_literal(operand)
        else:
            raise _refused(operator, "a projection", {"$slice", "$elemMatch"})


def _check_sort(sort: Sequence[tuple[str, int]]) -> None:
    for path, _ in sort:
        _check_path(path)


def _check_documents(documents: Sequence[Any]) -> None:
    for document in documents:
        check_document(document)


_CHECKS: dict[str, Callable[[Any], None]] = {
    "filter": check_filter,
    "update": check_update,
    "projection": check_projection,
    "sort": _check_sort,
    "documents": _check_documents,
    "replacement": check_document,
}


# Fields that go to child processes, never into a query.
FOR_CHILDREN = frozenset({"sealed", "sample", "inputs", "input"})


def check_command(command: Command) -> None:
    """Whatever a command carries for the database: operators only where operators belong.

    Raises InvalidInput that names the field of the command and what is wrong with it.
    """
    for name in type(command).model_fields:
        value = getattr(command, name)
        if value is None or name in FOR_CHILDREN:
            continue
        try:
            _CHECKS.get(name, _check_literal)(value)
        except InvalidInput as error:
            raise InvalidInput(f"{name}: {error.message}") from error


def _check_literal(value: Any) -> None:
    _check_plain(value, 1, refused=(re.Pattern, Regex, Code, DBRef))


def _check_plain(value: Any, depth: int, refused: tuple[type[Any], ...]) -> None:
    if depth > MAX_DOCUMENT_DEPTH:
        raise InvalidInput(f"deeper than {MAX_DOCUMENT_DEPTH} levels")
    if isinstance(value, dict):
        for key, each in value.items():
            if key.startswith("$"):
                raise InvalidInput(f"key {_short(key)} starts with '$'")
            if "\0" in key:
                raise InvalidInput("a key contains the character NUL")
            if isinstance(each, (dict, list, *refused)):
                _check_plain(each, depth + 1, refused)
    elif isinstance(value, list):
        for each in value:
            if isinstance(each, (dict, list, *refused)):
                _check_plain(each, depth + 1, refused)
    elif isinstance(value, refused):
        raise InvalidInput(f"a {type(value).__name__} is not taken in a filter or update")


def _check_path(path: Any) -> None:
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidInput("a field's path must be text, and not empty")
    first, *rest = path.split(".")
    if first.startswith("$") or any(
        part.startswith("$") and not POSITIONS.fullmatch(part) for part in rest
    ):
        raise InvalidInput(f"{_short(path)} is not a field's path")


def _check_depth(depth: int) -> None:
    if depth > MAX_FILTER_DEPTH:
        raise InvalidInput(f"the filter is deeper than {MAX_FILTER_DEPTH} levels")


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInput(f"{key} needs a list")
    return value


def _non_empty_list(key: str, value: Any) -> list[Any]:
    if not _list(key, value):
        raise InvalidInput(f"{key} needs a list of at least one filter")
    return list(value)


def _refused(key: Any, place: str, allowed: frozenset[str] | set[str]) -> InvalidInput:
    return InvalidInput(
        f"{_short(key)} is not taken in {place} over HTTP; there is {', '.join(sorted(allowed))}"
    )


def _short(text: Any) -> str:
    return repr(text) if len(str(text)) <= 40 else f"{str(text)[:40]!r}…"
