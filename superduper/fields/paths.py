"""Dotted paths into documents: `"a.b"` is the field `b` of the document in the field `a`.

A path goes through documents only, never into an array: inside an array a path means something
else to MongoDB's filters than to its update pipelines, so such a field counts as absent.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from enum import Enum
from typing import Any, Final

from superduper.errors import InvalidInput


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing.MISSING
"""What `get` answers for a field that is not there; a field that holds None is there."""


def get(document: Mapping[str, Any], path: str) -> Any:
    """The value at a path, or MISSING."""
    value: Any = document
    for segment in path.split("."):
        if not isinstance(value, Mapping):
            return MISSING
        try:
            value = value[segment]
        except KeyError:
            return MISSING
    return value


def has(document: Mapping[str, Any], path: str) -> bool:
    """Whether there is something at a path, None included."""
    return get(document, path) is not MISSING


def put(document: MutableMapping[str, Any], path: str, value: Any) -> None:
    """Set the value at a path, making the documents on the way.

    Raises InvalidInput if something on the way is there and is no document.
    """
    *parents, last = path.split(".")
    place = document
    for depth, segment in enumerate(parents, 1):
        place = place.setdefault(segment, {})
        if not isinstance(place, MutableMapping):
            way = ".".join(parents[:depth])
            raise InvalidInput(
                f"cannot set {path!r}: {way!r} is a {type(place).__name__}, not a document"
            )
    place[last] = value


def nested(path: str, value: Any) -> dict[str, Any]:
    """A document with only the value, at the path: `nested("a.b", 1)` is `{"a": {"b": 1}}`."""
    for segment in reversed(path.split(".")):
        value = {segment: value}
    return value  # type: ignore[no-any-return]


def above(path: str) -> Iterator[str]:
    """The paths that a path leads through: `"a"` and `"a.b"` for `"a.b.c"`."""
    segments = path.split(".")
    return (".".join(segments[:depth]) for depth in range(1, len(segments)))


def overlap(first: str, second: str) -> bool:
    """Whether two paths name the same field, or one a part of the other."""
    return first == second or first.startswith(f"{second}.") or second.startswith(f"{first}.")


def projection(read: Iterable[str]) -> dict[str, int]:
    """What to ask a server for to get these fields: it refuses a field beside a part of it."""
    names = sorted(set(read))
    return {name: 1 for name in names if not any(name.startswith(f"{other}.") for other in names)}
