"""Answers without an end: documents row by row, and a job's progress as server-sent events."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from superduper import commands
from superduper.command import Command, build
from superduper.errors import TooManyRequests
from superduper.fields.json import dumps
from superduper.store.mongo import database_errors
from superduper_server import bodies
from superduper_server.backend import STREAMS, Backend
from superduper_server.limits import Send
from superduper_server.openapi import describe
from superduper_server.routes import Router, read_command, untraced
from superduper_server.tokens import Identity

STREAM_PATH = "/v1/collections/{collection}/documents/stream"
EVENTS_PATH = "/v1/jobs/{id}/events"
EVENTS = "text/event-stream"
CHUNK_BYTES = 256 * 1024
POLL_SECONDS = 0.3
CHECK_SECONDS = 2.0
KEEP_ALIVE_SECONDS = 15.0
FINISHED = ("succeeded", "failed", "cancelled")


class Rows:
    """Documents of one query, read by whichever thread is free."""

    def __init__(self, documents: Iterator[dict[str, Any]], *, as_bson: bool) -> None:
        self._documents = documents
        self._as_bson = as_bson
        self._lock = threading.Lock()

    def take(self) -> bytes:
        """The next rows, about a chunk of them; empty after the last."""
        rows: list[bytes] = []
        size = 0
        with self._lock:
            for document in self._documents:
                rows.append(bodies.write_row(document, as_bson=self._as_bson))
                size += len(rows[-1])
                if size >= CHUNK_BYTES:
                    break
        return b"".join(rows)

    def close(self) -> None:
        """Let the database's cursor go."""
        with self._lock:
            self._documents.close()  # type: ignore[attr-defined]  # the service's are generators


class ClosingResponse(StreamingResponse):
    """Closes its source when the reader hangs up, not whenever the garbage is collected."""

    body_iterator: AsyncGenerator[bytes, None]

    async def stream_response(self, send: Send) -> None:
        """Send what there is."""
        async with aclosing(self.body_iterator):
            await super().stream_response(send)


class Standing:
    """Whether who asked may still be told: looked up every two seconds of a long answer."""

    def __init__(self, backend: Backend, identity: Identity) -> None:
        self._backend = backend
        self.identity = identity
        self._checked_at = time.monotonic()

    async def check(self) -> None:
        """Raise Unauthorized if the token was revoked or has expired: that cuts the connection."""
        if time.monotonic() - self._checked_at < CHECK_SECONDS:
            return
        seconds = self._backend.limits.seconds
        await self._backend.control.run(self._look_up, seconds=seconds)
        self._checked_at = time.monotonic()

    def _look_up(self) -> None:
        with database_errors():
            self._backend.tokens.check(self.identity)


@contextmanager
def counted_stream(backend: Backend) -> Iterator[None]:
    """One more open stream, while it lasts."""
    ledger = backend.group.ledger
    with ledger:
        ledger.hold(STREAMS, 1)
    try:
        yield
    finally:
        ledger.hold(STREAMS, -1)


def check_streams(backend: Backend) -> None:
    """Before an answer begins: afterwards all that could be done is to cut the connection.

    Raises TooManyRequests if too many streams are open.
    """
    if backend.streams >= backend.limits.streams:
        raise TooManyRequests(f"{backend.streams} streams are open: try again in a moment")


def add_streams(router: Router) -> None:
    """The endpoints whose answers go on."""
    backend = router.backend
    add_stream(
        router,
        commands.FindDocuments,
        STREAM_PATH,
        _documents(backend),
        media_type=bodies.JSON_LINES,
        name="stream_documents",
        summary="Stream documents",
        description=(
            "All documents that match, one JSON object a line, or one BSON document after the "
            "other. Same body as .../documents/query; a `limit` of 0, or none, is no limit."
        ),
    )
    add_stream(
        router,
        commands.ShowJob,
        EVENTS_PATH,
        _events(backend),
        media_type=EVENTS,
        name="follow_job",
        summary="Follow a job",
        description=(
            "Server-sent events: the job as `GET /v1/jobs/{id}` shows it, each time it changes, "
            "until it has finished."
        ),
    )


def add_stream(
    router: Router,
    command: type[Command],
    path: str,
    answer: Any,
    *,
    media_type: str,
    **said: Any,
) -> None:
    """An endpoint whose answer goes on, described from a command with the same body."""
    described = describe(command, path, 200, router.schemas)
    content = {media_type: {"schema": {"type": "string"}}}
    described["openapi_extra"]["responses"]["200"]["content"] = content
    router.add_plain(
        command.route.method, path, answer, command.route.role, **{**described, **said}
    )


def _documents(backend: Backend) -> Any:
    async def answer(request: Request) -> Response:
        check_streams(backend)
        body = await request.body()
        as_bson = bodies.wants_bson(request.headers)

        def begin() -> tuple[Rows, bytes]:
            with bodies.refused_values():
                command = read_command(commands.FindDocuments, {}, request, body)
                if "limit" not in command.model_fields_set:
                    command = command.model_copy(update={"limit": 0})
                rows = Rows(backend.service.stream(command), as_bson=as_bson)
                return rows, rows.take()

        identity: Identity = request.scope["identity"]
        seconds = backend.limits.seconds
        rows, first = await backend.requests.run(begin, seconds=seconds, owner=identity.id)
        chunks = _chunks(backend, Standing(backend, identity), rows, first)
        return ClosingResponse(chunks, media_type=bodies.BSON if as_bson else bodies.JSON_LINES)

    return answer


async def _chunks(
    backend: Backend, standing: Standing, rows: Rows, first: bytes
) -> AsyncGenerator[bytes, None]:
    try:
        with counted_stream(backend):
            chunk = first
            while chunk:
                yield chunk
                await standing.check()
                seconds = backend.limits.long_seconds
                chunk = await backend.requests.run(
                    rows.take, seconds=seconds, owner=standing.identity.id
                )
    finally:
        await backend.control.run(rows.close, seconds=backend.limits.seconds)


def _events(backend: Backend) -> Any:
    async def answer(request: Request) -> Response:
        check_streams(backend)
        command = build(commands.ShowJob, id=request.path_params["id"])
        identity: Identity = request.scope["identity"]
        first = await _job(backend, command, identity)
        events = _job_events(backend, command, identity, first)
        return ClosingResponse(events, media_type=EVENTS, headers={"cache-control": "no-store"})

    return answer


async def _job(backend: Backend, command: commands.ShowJob, identity: Identity) -> dict[str, Any]:
    found: dict[str, Any] = await backend.requests.run(
        lambda: backend.service.handle(command, identity.id),
        seconds=backend.limits.seconds,
        owner=identity.id,
    )
    return found if identity.may("trainer") else untraced(found)


async def _job_events(
    backend: Backend, command: commands.ShowJob, identity: Identity, job: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    loop = asyncio.get_running_loop()
    standing = Standing(backend, identity)
    with counted_stream(backend):
        sent, sent_at = b"", loop.time()
        while True:
            event = dumps(job)
            if event != sent:
                sent, sent_at = event, loop.time()
                yield b"event: job\ndata: " + event + b"\n\n"
            elif loop.time() - sent_at > KEEP_ALIVE_SECONDS:
                sent_at = loop.time()
                yield b": still there\n\n"
            if job["state"] in FINISHED or await _stops(backend.stopping):
                return
            await standing.check()
            job = await _job(backend, command, identity)


async def _stops(stopping: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(POLL_SECONDS):
            return await stopping.wait()
    except TimeoutError:
        return False
