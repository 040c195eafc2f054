"""Commands as HTTP requests and answers as values: what goes over the wire, without sending it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument
from pydantic import BaseModel

from superduper.command import PLURALS_OF_ALL, Command
from superduper.commands import (
    CountDocuments,
    ExplainPrediction,
    FindDocuments,
    InsertDocuments,
    Predict,
    PredictDocuments,
    PredictImputation,
    StreamPrediction,
)
from superduper.errors import (
    InvalidInput,
    NotAllowed,
    NotReady,
    SuperduperError,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    error_of,
)

BSON: Final = "application/bson"
INSERT_BYTES: Final = 16 * 1024 * 1024
"""How much of a long insert goes into one request; a server takes 64 MiB if not told otherwise."""

HINT: Final = "pass token= to connect(), or set SUPERDUPER_TOKEN"

# Dates outside Python's range must not fail: they come as milliseconds.
OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_AUTO
)

# What proxies answer by themselves, without a code of ours.
_OF_STATUS: dict[int, type[SuperduperError]] = {
    401: Unauthorized,
    403: NotAllowed,
    413: TooLarge,
    429: TooManyRequests,
    502: NotReady,
    503: NotReady,
    504: NotReady,
}
_READING = (
    FindDocuments,
    CountDocuments,
    Predict,
    PredictImputation,
    PredictDocuments,
    ExplainPrediction,
)


@dataclass(frozen=True)
class Call:
    """One HTTP request."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes | None
    is_repeatable: bool
    """Whether sending it twice does no more than sending it once."""


def call_of(command: Command) -> Call:
    """The request for a command: fields of the path there, the others in the query or the body."""
    route = type(command).route
    fields = _sent_fields(command)
    path = _path(route.path, fields)
    is_repeatable = route.method == "GET" or isinstance(command, _READING)
    if route.method in ("GET", "DELETE"):
        query = {name: str(value) for name, value in fields.items()}
        return Call(route.method, path, query, None, is_repeatable)
    return Call(route.method, path, {}, _encoded(fields), is_repeatable)


def stream_call_of(command: FindDocuments | StreamPrediction) -> Call:
    """The request for all documents of a query, or pieces of a prediction, one after the other."""
    call = call_of(command)
    if isinstance(command, StreamPrediction):
        return call
    path = call.path.removesuffix("/query") + "/stream"
    return Call(call.method, path, call.query, call.body, is_repeatable=True)


def insert_calls_of(command: InsertDocuments) -> Iterator[Call]:
    """The requests for an insert, none of them much larger than `INSERT_BYTES`."""
    part: list[Any] = []
    size = 0
    for document in command.documents:
        encoded = _encoded(document)
        if part and size + len(encoded) > INSERT_BYTES:
            yield call_of(command.model_copy(update={"documents": part}))
            part, size = [], 0
        part.append(RawBSONDocument(encoded))
        size += len(encoded)
    yield call_of(command.model_copy(update={"documents": part}))


def _sent_fields(command: Command) -> dict[str, Any]:
    given = {name: getattr(command, name) for name in command.model_fields_set}
    return {name: _plain(value) for name, value in given.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _path(template: str, fields: dict[str, Any]) -> str:
    """The path; the fields that stand in it are taken out of `fields`."""
    parts = []
    for part in template.split("/"):
        if part == "{kinds}":
            part = PLURALS_OF_ALL[fields.pop("kind")]
        elif part.startswith("{"):
            value = str(fields.pop(part[1:-1]))
            if value in ("", ".", ".."):  # these mean something else in a path
                raise InvalidInput(f"{part[1:-1]}: {value!r} is not the name of anything")
            part = quote(value, safe="")
        parts.append(part)
    return "/".join(parts)


def _encoded(fields: Mapping[str, Any]) -> bytes:
    try:
        return bson.encode(fields, codec_options=OPTIONS)
    except (bson.errors.BSONError, UnicodeError, OverflowError, ValueError) as error:
        raise InvalidInput(f"the request cannot be sent: {error!s:.200}") from error


def result_of(status: int, media_type: str, body: bytes, url: str) -> Any:
    """The value that a server answered.

    Raises the error that it answered, with its `request_id`.
    """
    answer = _read(media_type, body)
    if 200 <= status < 300 and "result" in answer:
        return answer["result"]
    error = answer.get("error")
    if isinstance(error, dict) and "code" in error:
        raise _known_error(error)
    if 300 <= status < 400:
        raise InvalidInput(f"{url} redirects elsewhere (HTTP {status}): use the URL it leads to")
    kind = _OF_STATUS.get(status, SuperduperError)
    hint = f": {HINT}" if kind is Unauthorized else ""
    raise kind(f"{url} answered HTTP {status}, not as a Superduper server does{hint}")


def is_bson(media_type: str) -> bool:
    """Whether a media type, parameters aside, is that of BSON."""
    return media_type.partition(";")[0].strip().lower() == BSON


def _read(media_type: str, body: bytes) -> dict[str, Any]:
    try:
        if is_bson(media_type):
            return bson.decode(body, OPTIONS)
        answer = json.loads(body) if "json" in media_type else {}
    except (bson.errors.InvalidBSON, ValueError, RecursionError):
        return {}  # what it is not, the caller says together with the status
    return answer if isinstance(answer, dict) else {}


def _known_error(error: Mapping[str, Any]) -> SuperduperError:
    text = str(error.get("message"))
    if error["code"] == Unauthorized.code:
        text = f"{text} ({HINT})"
    found = error_of(str(error["code"]), text)
    found.request_id = error.get("request_id")  # type: ignore[attr-defined]
    return found


def check_pieces(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a prediction's stream, which ends with one that tells how it ended.

    Raises the error that ended it, NotReady if the stream ends without such a row.
    """
    for row in rows:
        yield checked_piece(row)
        if "end" in row:
            return
    raise ended_early()


def ended_early() -> NotReady:
    """The error for a stream of pieces that breaks off."""
    return NotReady("the server's stream of pieces ended too early: ask again")


def checked_piece(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a prediction's stream.

    Raises the error that it tells of.
    """
    if "error" in row:
        raise _known_error(row["error"])
    return row


def split_rows(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The BSON documents that follow each other in a stream; see `Rows`."""
    rows = Rows()
    for chunk in chunks:
        yield from rows.of(chunk)
    rows.check_end()


class Rows:
    """Cuts a stream into the BSON documents that follow each other in it."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def of(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """The documents that are complete with this chunk."""
        buffer = self._buffer
        buffer += chunk
        start = 0
        while len(buffer) - start >= 4:
            end = start + int.from_bytes(buffer[start : start + 4], "little")
            if end < start + 5:
                raise SuperduperError("the server's stream of documents is damaged")
            if end > len(buffer):
                break
            yield bson.decode(bytes(buffer[start:end]), OPTIONS)
            start = end
        del buffer[:start]

    def check_end(self) -> None:
        """Raise NotReady if the stream ended inside a document."""
        if self._buffer:
            raise NotReady("the server's stream of documents ended too early: ask again")
