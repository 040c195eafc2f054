"""A database in memory that understands what our updates are made of, and nothing else.

For simulations only: what it makes of an update is compared with a real store in the tests. Filters
and expressions follow MongoDB's rules for paths, arrays, nulls and types as far as they are used;
an operator that it does not know is a KeyError. A projection is ignored: more is answered.
"""

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteOne

MISSING = object()
TYPES = {
    **{type(None): "null", bool: "bool", int: "int", float: "double", str: "string"},
    **{dict: "object", list: "array"},
}
Doc = dict[str, Any]


# Values --------------------------------------------------------------------------------------


def type_name(value: Any) -> str:
    """MongoDB's name for a value's type."""
    return "missing" if value is MISSING else TYPES[type(value)]


def same(first: Any, second: Any) -> bool:
    """Equality as MongoDB has it: numbers across types, documents with the order of their keys."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        pairs = list(zip(first.items(), second.items(), strict=False))
        return len(first) == len(second) and all(
            key == other and same(value, its) for (key, value), (other, its) in pairs
        )
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    numbers = (int, float)
    if type(first) in numbers and type(second) in numbers:
        return first == second
    return type(first) is type(second) and first == second


# Filters -------------------------------------------------------------------------------------


def matches(document: Mapping[str, Any], filter: Mapping[str, Any]) -> bool:
    """Whether a filter lets a document through."""
    return all(_holds(document, key, wanted) for key, wanted in filter.items())


def _holds(document: Mapping[str, Any], key: str, wanted: Any) -> bool:
    if key == "$and":
        return all(matches(document, each) for each in wanted)
    if key == "$or":
        return any(matches(document, each) for each in wanted)
    found = list(_found(document, key.split(".")))
    is_operators = isinstance(wanted, Mapping) and any(name.startswith("$") for name in wanted)
    operators = wanted if is_operators else {"$eq": wanted}
    return all(FILTERS[name](found, operand) for name, operand in operators.items())


def _found(value: Any, segments: Sequence[str]) -> Iterator[Any]:
    """What a path leads to: several values where it goes through an array."""
    if not segments:
        yield value
    elif isinstance(value, Mapping):
        yield from _found(value.get(segments[0], MISSING), segments[1:])
    elif isinstance(value, list):
        parts = [each for each in value if isinstance(each, Mapping)]
        for each in parts:
            yield from _found(each, segments)
        if not parts:
            yield MISSING
    else:
        yield MISSING


def _or_elements(found: Sequence[Any]) -> Iterator[Any]:
    for value in found:
        yield value
        if isinstance(value, list):
            yield from value


def _equals(found: Sequence[Any], operand: Any) -> bool:
    if operand is None and MISSING in found:
        return True
    return any(same(value, operand) for value in _or_elements(found) if value is not MISSING)


def _element_matches(found: Sequence[Any], operand: Mapping[str, Any]) -> bool:
    elements = [each for value in found if isinstance(value, list) for each in value]
    return any(same(each, operand["$eq"]) for each in elements)


FILTERS: dict[str, Callable[[Sequence[Any], Any], bool]] = {
    "$eq": _equals,
    "$exists": lambda found, flag: any(each is not MISSING for each in found) == flag,
    "$type": lambda found, name: any(type_name(each) == name for each in _or_elements(found)),
    "$in": lambda found, options: any(_equals(found, each) for each in options),
    "$elemMatch": _element_matches,
    "$not": lambda found, operators: (
        not all(FILTERS[name](found, operand) for name, operand in operators.items())
    ),
}


# Updates -------------------------------------------------------------------------------------


def evaluate(expression: Any, document: Mapping[str, Any]) -> Any:
    """An aggregation expression's value."""
    if isinstance(expression, str) and expression.startswith("$"):
        if expression == "$$ROOT":
            return document
        value: Any = document
        for segment in expression[1:].split("."):
            value = value.get(segment, MISSING) if isinstance(value, Mapping) else MISSING
        return value
    if isinstance(expression, list):
        return [evaluate(each, document) for each in expression]
    if not isinstance(expression, Mapping):
        return expression
    [(name, operand)] = expression.items() if len(expression) == 1 else [("", expression)]
    if name == "$literal":
        return operand
    if name == "$cond":  # of the branches only the one that is wanted: the other may fail
        return evaluate(operand[1 if evaluate(operand[0], document) else 2], document)
    if name.startswith("$"):
        return EXPRESSIONS[name](evaluate(operand, document))
    made = {key: evaluate(each, document) for key, each in expression.items()}
    return {key: each for key, each in made.items() if each is not MISSING}


def _merged(parts: Sequence[Any]) -> Doc:
    whole: Doc = {}
    for part in parts:
        whole |= {} if part is MISSING or part is None else part
    return whole


EXPRESSIONS: dict[str, Callable[[Any], Any]] = {
    "$eq": lambda pair: same(*pair),
    "$cmp": lambda pair: 0 if same(*pair) else 1,
    "$and": all,
    "$in": lambda pair: any(same(pair[0], each) for each in pair[1]),
    "$type": type_name,
    "$ifNull": lambda pair: next(each for each in pair if each is not MISSING and each is not None),
    "$max": lambda many: max(each for each in many if each is not MISSING),
    "$min": min,
    "$gte": lambda pair: pair[0] >= pair[1],
    "$mergeObjects": _merged,
}


def updated(document: Mapping[str, Any], update: Any) -> Doc:
    """A document after an update."""
    after: Doc = bson.decode(bson.encode(document))
    if isinstance(update, list):
        for stage in update:
            [(name, operand)] = stage.items()
            made = evaluate(operand, after)
            after = bson.decode(bson.encode({**after, **made} if name == "$set" else made))
        return after
    unknown = set(update) - {"$set", "$unset", "$setOnInsert"}
    if unknown:
        raise KeyError(f"no operator {unknown}")
    for path, value in update.get("$set", {}).items():
        *parents, last = path.split(".")
        place = after
        for segment in parents:
            place = place.setdefault(segment, {})
        place[last] = value
    for path in update.get("$unset", {}):
        *parents, last = path.split(".")
        place = after
        for segment in parents:
            place = place.get(segment, {}) if isinstance(place, Mapping) else {}
        if isinstance(place, dict):
            place.pop(last, None)
    return bson.decode(bson.encode(after))


# Collections ---------------------------------------------------------------------------------


class Done:
    """What a write came to."""

    def __init__(self, matched: int = 0, modified: int = 0) -> None:
        self.matched_count = matched
        self.modified_count = modified


class Found:
    """A cursor."""

    def __init__(self, documents: list[Any]) -> None:
        self._documents = iter(documents)

    def sort(self, *_: Any) -> "Found":
        """As they were inserted."""
        return self

    def __iter__(self) -> "Found":
        return self

    def __next__(self) -> Any:
        return next(self._documents)

    def __enter__(self) -> "Found":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class MemoryCollection:
    """Documents in the order of their insertion; `memory.before` is called before each request."""

    def __init__(self, memory: "MemoryDatabase", name: str) -> None:
        self.memory = memory
        self.name = name
        self.documents: dict[Any, Doc] = {}
        self.raw = False

    def with_options(self, _: Any) -> "MemoryCollection":
        """The same collection, read as raw documents: what we ask it for."""
        other = MemoryCollection(self.memory, self.name)
        other.documents, other.raw = self.documents, True
        return other

    def create_index(self, *_: Any, **__: Any) -> None:
        """No index changes what is answered."""

    def find(self, filter: Any = None, *_: Any, **__: Any) -> Found:
        """The documents that match."""
        self.memory.before()
        made = [each for each in self.documents.values() if matches(each, filter or {})]
        if self.raw:
            return Found([RawBSONDocument(bson.encode(each)) for each in made])
        return Found([bson.decode(bson.encode(each)) for each in made])

    def find_one(self, filter: Any = None, *_: Any) -> Any:
        """One of them."""
        return next(iter(self.find(filter)), None)

    def bulk_write(self, updates: Sequence[Any], ordered: bool = True) -> Done:
        """Each `UpdateOne` or `DeleteOne` in turn."""
        self.memory.before()
        done = Done()
        for update in updates:
            if isinstance(update, DeleteOne):
                self._delete(update._filter, many=False)
            else:
                self._update(update._filter, update._doc, bool(update._upsert), done)
        return done

    def update_many(self, filter: Mapping[str, Any], update: Any) -> Done:
        """All that match."""
        self.memory.before()
        done = Done()
        self._update(filter, update, False, done, many=True)
        return done

    def delete_many(self, filter: Mapping[str, Any]) -> None:
        """All that match."""
        self.memory.before()
        self._delete(filter, many=True)

    def _delete(self, filter: Mapping[str, Any], *, many: bool) -> None:
        keys = [key for key, each in self.documents.items() if matches(each, filter)]
        for key in keys if many else keys[:1]:
            del self.documents[key]

    def _update(
        self, filter: Mapping[str, Any], update: Any, upsert: bool, done: Done, many: bool = False
    ) -> None:
        keys = [key for key, each in self.documents.items() if matches(each, filter)]
        for key in keys if many else keys[:1]:
            before = self.documents[key]
            after = updated(before, update)
            self.memory.written(self.name, before, after)
            self.documents[key] = after
            done.matched_count += 1
            done.modified_count += bson.encode(before) != bson.encode(after)
        if upsert and not keys:
            plain = {k: v for k, v in filter.items() if not isinstance(v, Mapping)}
            if not isinstance(update, list):
                update = {"$set": {**update.get("$setOnInsert", {}), **update.get("$set", {})}}
            new = updated(plain, update)
            self.memory.written(self.name, None, new)
            self.documents[self.memory.tick()] = new


class MemoryDatabase:
    """Collections by name, and a clock that never says the same twice."""

    def __init__(self) -> None:
        self._collections: dict[str, MemoryCollection] = {}
        self._now = 1_700_000_000_000
        self.before: Callable[[], None] = lambda: None
        self.written: Callable[[str, Doc | None, Doc], None] = lambda *_: None

    def __getitem__(self, name: str) -> MemoryCollection:
        if name not in self._collections:
            self._collections[name] = MemoryCollection(self, name)
        return self._collections[name]

    def tick(self) -> int:
        """The time in milliseconds."""
        self._now += 1
        return self._now

    def command(self, _: str) -> dict[str, Any]:
        """What `hello` tells of the time."""
        seconds = self.tick() / 1000
        return {"localTime": datetime.datetime.fromtimestamp(seconds, datetime.UTC)}
