"""The checker: the users' record against the database, with pymongo and the function alone.

It knows nothing of how fills are made. It cannot see how often a value was written; that a value's
provenance names one version, this input and this value, is what it can see of "at most once".
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import bson

from tests.chaos.answer import answer, is_poison
from tests.chaos.users import MISSING, Known, State

KEYS = {"imputation", "version", "at", "input", "value"}
MOST_ATTEMPTS = 3


def digest(value: Any, size: int) -> str:
    """The hash that provenance names a value by."""
    return blake2b(bson.encode({"": value}), digest_size=size).hexdigest()


class Checker:
    """One look at the whole database."""

    def __init__(
        self, database: Any, known: Iterable[Known], live: int, fields: Sequence[str]
    ) -> None:
        self.live = live
        self.fields = fields
        self.documents = {_key(each["_id"]): each for each in database["docs"].find()}
        self.failures = {
            (each["imputation"], _key(each["document"])): each
            for each in database["superduper.failures"].find()
        }
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self._check_all(list(known))

    def _check_all(self, known: list[Known]) -> None:
        for each in known:
            key = _key(each.id)
            document = self.documents.pop(key, None)
            found = [self._wrong(state, document, key, each.inputs) for state in each.states]
            self.counts["documents"] += 1
            self.counts["unsure"] += not each.sure
            if all(found):
                self.violations.append(f"{each.id!r}: {' / '.join(filter(None, found))}")
            elif document is not None:
                self._count(document, key)
        self.violations += [f"{each['_id']!r}: nobody made it" for each in self.documents.values()]

    def _count(self, document: Mapping[str, Any], key: bytes) -> None:
        for field in self.fields:
            if field not in document:
                self.counts["blank"] += 1
            else:
                given = str(document[field]).startswith("U")
                self.counts["given" if given else "filled"] += 1
            self.counts["dead"] += self._failure(field, key).get("state") == "dead"

    def _failure(self, field: str, key: bytes) -> dict[str, Any]:
        return self.failures.get((f"docs/fill_{field}", key), {})

    def _wrong(
        self, state: State, document: dict[str, Any] | None, key: bytes, inputs: list[Any]
    ) -> str | None:
        """What contradicts this state of a document, or None."""
        if not state.there:
            return None if document is None else "I6: it was deleted and is there"
        if document is None:
            return "it is lost"
        if _key(document.get("x", MISSING)) != _key(state.x):
            return f"x is {document.get('x', MISSING)!r} and should be {state.x!r}"
        if not set(document) <= {"_id", "x", "_fill", *self.fields}:
            return f"it has fields nobody wrote: {sorted(document)}"
        if not set(document.get("_fill", ())) <= set(self.fields):
            return f"I7: its provenance is {document['_fill']!r}"
        found = (self._wrong_field(field, state, document, key, inputs) for field in self.fields)
        return next((wrong for wrong in found if wrong), None)

    def _wrong_field(
        self, field: str, state: State, document: dict[str, Any], key: bytes, inputs: list[Any]
    ) -> str | None:
        if field in state.given:
            value = document.get(field)
            return None if value == state.given[field] else f"I1: {field} is {value!r}"
        if is_poison(state.x):
            return self._wrong_poison(field, document, key, inputs)
        if field not in document:
            error = self._failure(field, key).get("error")
            return f"I4: {field} is blank, with {error}"
        return _wrong_fill(field, document, [state.x], self.live)

    def _wrong_poison(
        self, field: str, document: dict[str, Any], key: bytes, inputs: list[Any]
    ) -> str | None:
        failure = self._failure(field, key)
        if failure.get("state") != "dead":
            return f"I5: it is poison and its failure is {failure.get('state')}"
        if failure["attempts"] > MOST_ATTEMPTS or not failure["error"]:
            return f"I5: {failure['attempts']} attempts, error {failure['error']}"
        if failure["version"] != self.live or failure["input"] != digest(document["x"], 16):
            return f"I5: its failure is of version {failure['version']} or of another input"
        # What was computed from an earlier input stays until something can take its place.
        usable = [each for each in inputs if not is_poison(each)]
        return _wrong_fill(field, document, usable, self.live) if field in document else None


def _wrong_fill(
    field: str, document: Mapping[str, Any], inputs: list[Any], live: int
) -> str | None:
    """What contradicts that a field was made of one of these inputs by one version."""
    fill, value = document.get("_fill", {}).get(field), document[field]
    if not isinstance(fill, Mapping) or set(fill) != KEYS:
        return f"I7: {field} is {value!r} and its provenance {document.get('_fill')!r}"
    version = fill["version"]
    if version not in range(1, live + 1) or fill["value"] != digest(value, 8):
        return f"I7: {field} is {value!r} and its provenance {fill!r}"
    made_of = [each for each in inputs if answer(each, version, field) == value]
    if not any(fill["input"] == digest(each, 16) for each in made_of):
        return f"I2: {field} is {value!r}, x is {document['x']!r}, and its provenance {fill!r}"
    return None


def _key(value: Any) -> bytes:
    return bson.encode({"": value})
