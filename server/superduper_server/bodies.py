"""What goes over the wire: the one place that knows about JSON and BSON.

JSON is the default: extended JSON for what JSON has no word for, an answer is the bare result.
With `Content-Type: application/bson` a request's body is one BSON document of its fields, and with
`Accept: application/bson` the answer is one BSON document, `{"result": ...}` or `{"error": ...}`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import bson
import orjson
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from pydantic import BaseModel

from superduper.command import Command, build
from superduper.errors import InvalidInput, TooLarge
from superduper.fields.json import dumps, from_json
from superduper_server.filters import OPERATOR_FIELDS, check_command, read_operators
from superduper_server.limits import MalformedBody, UnsupportedMediaType

BSON = "application/bson"
JSON = "application/json"
JSON_LINES = "application/x-ndjson"

# Dates outside Python's range must not fail: they come as milliseconds.
OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO
)

# orjson makes a float of an integer beyond 64 bits, in silence.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
# What ends a key. Text may hold it as well, so that there can be more of these than keys.
_KEY_END = re.compile(rb'"[ \t\n\r]*:')
# A value of two bytes becomes an object of dozens.
MAX_VALUES = 4_000_000
_OPENERS = (b",", b"[", b"{")


def content_type(headers: Mapping[str, str]) -> str:
    """The media type of a request's body, without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def wants_bson(headers: Mapping[str, str]) -> bool:
    """Whether the answer is to be BSON."""
    return BSON in headers.get("accept", "").lower()


def read_fields(headers: Mapping[str, str], query: str, body: bytes) -> dict[str, Any]:
    """The fields that a request sends in its body.

    Raises InvalidInput if it has a query as well, and what `read_body` raises.
    """
    if query:
        raise InvalidInput("this request takes no query parameters: send its fields in the body")
    return read_body(content_type(headers), body)


def check_fields(
    command: type[BaseModel], placed: Mapping[str, Any], sent: Mapping[str, Any]
) -> Any:
    """The checked command of what stands in the path and what was sent beside it.

    Raises InvalidInput that names the first wrong field.
    """
    for name in sent:
        if name in placed:
            raise InvalidInput(f"{name}: belongs in the path, not beside it")
        if name not in command.model_fields:
            raise InvalidInput(f"{name[:40]!r} is not a field of this request")
    built = build(command, **placed, **sent)  # type: ignore[type-var]
    if isinstance(built, Command):
        check_command(built)
    return built


@contextmanager
def refused_values() -> Iterator[None]:
    """Values that cannot be stored as BSON are the sender's mistake."""
    try:
        yield
    except (BSONError, OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidInput(
            f"a value in the request cannot be stored as BSON ({type(error).__name__})"
        ) from error


def read_body(kind: str, body: bytes) -> dict[str, Any]:
    """The fields of a command from a request's body.

    Raises MalformedBody if it cannot be read, UnsupportedMediaType if its type is not taken.
    """
    if not body and kind in ("", JSON, BSON):
        return {}
    if kind == BSON:
        return _read_bson(body)
    if kind == JSON:
        return _read_json(body)
    raise UnsupportedMediaType(f"send the body as {JSON} or {BSON} and say so in Content-Type")


def _read_bson(body: bytes) -> dict[str, Any]:
    try:
        return bson.decode(body, OPTIONS)
    except (bson.errors.InvalidBSON, RecursionError) as error:
        raise MalformedBody("the body is not one valid BSON document") from error


def _read_json(body: bytes) -> dict[str, Any]:
    value = parse_object(body)
    if _LONG_NUMBER.search(body):
        value = json.loads(body, parse_int=_integer)
    return {
        name: read_operators(each) if name in OPERATOR_FIELDS else from_json(each)
        for name, each in value.items()
    }


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body, as it is written.

    Raises MalformedBody if it is none, has a key twice or is nested too deep, TooLarge if it has
    too many values.
    """
    if has_too_many_values(body):
        raise TooLarge(f"more than {MAX_VALUES} values in one body: send fewer, or send tensors")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # Its text names the position and never quotes the body.
        raise MalformedBody(f"the body is not valid JSON: {error.msg} at {error.pos}") from error
    if not isinstance(value, dict):
        raise MalformedBody("the body must be one JSON object")
    try:
        ends = len(_KEY_END.findall(body))
        if ends != len(value) and ends != _count_keys(value):
            json.loads(body, parse_int=_anything, object_pairs_hook=_unique)
    except RecursionError as error:
        raise MalformedBody("the body is nested too deep") from error
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise MalformedBody("an integer in the body does not fit 64 bits")
    return int(text)


def has_too_many_values(body: bytes) -> bool:
    """Whether JSON would become more objects than there is room for; asked before it is parsed."""
    return len(body) > MAX_VALUES and sum(map(body.count, _OPENERS)) > MAX_VALUES


def _anything(text: str) -> int:
    return 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedBody("an object in the body has the same key twice")
    return found


def _count_keys(value: Any) -> int:
    """The number of keys in a parsed value, at all levels."""
    if isinstance(value, dict):
        return len(value) + sum(map(_count_keys, value.values()))
    if isinstance(value, list) and not _PLAIN.issuperset(map(type, value)):
        return sum(map(_count_keys, value))
    return 0


_PLAIN = frozenset({int, float, str, bool, type(None)})


def write_answer(result: Any, *, as_bson: bool) -> tuple[bytes, str]:
    """The body of a good answer, and its media type."""
    if as_bson:
        return bson.encode({"result": result}, codec_options=OPTIONS), BSON
    return dumps(result), JSON


def write_error(error: Mapping[str, Any], *, as_bson: bool) -> tuple[bytes, str]:
    """The body of a bad answer, and its media type."""
    if as_bson:
        return bson.encode({"error": error}), BSON
    return orjson.dumps({"error": error}), JSON


def write_row(document: Mapping[str, Any], *, as_bson: bool) -> bytes:
    """One document of a stream."""
    return bson.encode(document, codec_options=OPTIONS) if as_bson else dumps(document) + b"\n"
