"""One prediction piece by piece: server-sent events, or BSON documents for our own client.

The next piece is asked of the model when the one before has been sent: who does not read, or has
gone, has it work no further.
"""

import threading
from collections.abc import AsyncGenerator, Generator
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from superduper import commands
from superduper.command import words_of
from superduper.fields.json import dumps
from superduper_server import bodies
from superduper_server.backend import Backend
from superduper_server.observe import told
from superduper_server.routes import Router, read_command
from superduper_server.streams import (
    EVENTS,
    ClosingResponse,
    Standing,
    add_stream,
    check_streams,
    counted_stream,
)


class Pieces:
    """The rows of one prediction, taken one by one by whichever thread is free."""

    def __init__(self, rows: Generator[dict[str, Any], None, None], *, as_bson: bool) -> None:
        self._rows = rows
        self._as_bson = as_bson
        self._lock = threading.Lock()

    def take(self) -> bytes:
        """The next row as it is sent; empty after the last."""
        with self._lock:
            row = next(self._rows, None)
        return b"" if row is None else self.written(row)

    def written(self, row: dict[str, Any]) -> bytes:
        """A row as it is sent: its one key names the event."""
        if self._as_bson:
            return bodies.write_row(row, as_bson=True)
        [(event, value)] = row.items()
        return b"event: " + event.encode() + b"\ndata: " + dumps(value) + b"\n\n"

    def close(self) -> None:
        """End what is still to come."""
        with self._lock:
            self._rows.close()


def add_piece_streams(router: Router) -> None:
    """The endpoints that answer a prediction piece by piece."""
    for kind, word in words_of(commands.StreamPrediction).items():
        path = commands.StreamPrediction.route.path.replace("{kinds}", word)
        add_stream(
            router,
            commands.StreamPrediction,
            path,
            _pieces(router.backend, kind),
            media_type=EVENTS,
            name=f"stream_prediction_of_{kind}",
            summary="Stream a prediction",
            description=(
                "Server-sent events: `piece` for each piece that the model yields (one, if it "
                "yields nothing), then `end` with their number and the version, or `error`. With "
                "`Accept: application/bson`, BSON documents `{piece}`, `{end}` or `{error}`."
            ),
        )


def _pieces(backend: Backend, kind: str) -> Any:
    async def answer(request: Request) -> Response:
        check_streams(backend)
        body = await request.body()
        as_bson = bodies.wants_bson(request.headers)

        def begin() -> tuple[Pieces, bytes]:
            with bodies.refused_values():
                fixed = {"kind": kind}
                command = read_command(commands.StreamPrediction, fixed, request, body)
            pieces = Pieces(backend.service.stream(command), as_bson=as_bson)
            return pieces, pieces.take()  # what fails before it begins has a status of its own

        standing = Standing(backend, request.scope["identity"])
        pieces, first = await backend.pieces.run(
            begin, seconds=backend.limits.long_seconds, owner=standing.identity.id
        )
        sent = _sent(backend, standing, pieces, first)
        headers = {"cache-control": "no-store"}
        return ClosingResponse(sent, media_type=bodies.BSON if as_bson else EVENTS, headers=headers)

    return answer


async def _sent(
    backend: Backend, standing: Standing, pieces: Pieces, first: bytes
) -> AsyncGenerator[bytes, None]:
    seconds, owner = backend.limits.predict_seconds, standing.identity.id
    try:
        with counted_stream(backend):
            chunk = first
            while chunk:
                yield chunk
                await standing.check()
                try:
                    chunk = await backend.pieces.run(pieces.take, seconds=seconds, owner=owner)
                except Exception as error:  # too late for a status: the last event tells of it
                    yield pieces.written({"error": told(error)})
                    return
    finally:
        await backend.pieces.run(pieces.close, seconds=seconds, owner=owner)
