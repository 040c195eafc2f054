"""Predictions of what is known, answered without the application around them.

Same guard, shares, limits, figures and errors as the ordinary way, from the same functions. What
was known a while ago is looked up again, once for all who wait for it. What is not known, is
unusual, or may not be done, is left to the ordinary way.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect

from superduper.serving.batches import Outcomes
from superduper_server.auth import QuickGuard
from superduper_server.backend import unless_gone
from superduper_server.limits import Application, Message, Receive, Scope, Send
from superduper_server.models import MODEL_PATH, Models, Place, find_place
from superduper_server.observe import Figures, RequestIds, error_answer, marks
from superduper_server.predict import SMALL_BYTES, Job, Predictions, Ticket, read
from superduper_server.tokens import Identity
from superduper_server.traces import Tracer

LOOKUP_SECONDS = 0.25
"""How long a short way waits for look-ups; then the ordinary one does, which has its deadline."""

RawHeaders = list[tuple[bytes, bytes]]
Send3 = Callable[[int, RawHeaders, bytes], None]
"""Is given status, headers and body of the answer, at once or later."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a request before its body, if it may take a short way."""

    place: Place
    fields: Mapping[str, str]

    @classmethod
    def of(cls, place: Place, headers: RawHeaders) -> "Head | None":
        """From headers with names in small letters; None if they are unusual."""
        fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        if len(fields) != len(headers) or "content-encoding" in fields:
            return None
        return cls(place, fields)


class FastPath:
    """Begins predictions for the doors; for the event loop's thread."""

    def __init__(
        self,
        core: Predictions,
        models: Models,
        guard: QuickGuard,
        figures: Figures,
        ids: RequestIds,
        tracer: Tracer | None = None,
    ) -> None:
        self._core = core
        self._models = models
        self._guard = guard
        self._figures = figures
        self._ids = ids
        self.tracer = tracer
        self.begun = 0

    def begin(self, head: Head, body: bytes, send: Send3) -> "Work | None":
        """Answer a request through `send`, unless it must go the ordinary way: then None."""
        if self._core.stopping:
            return None
        place, fields = head.place, head.fields
        if place.template == MODEL_PATH and b"version" in body:
            return None  # it may name another than the live one
        target = self._models.get_now(place)
        if target is None or self._models.is_unloaded(place.model):
            return None
        identity = self._guard.admit("POST", place.template, fields)
        if identity is None:
            return None
        self.begun += 1
        work = Work(self, head, send, self._ids.of(fields.get("x-request-id", "")))
        try:
            self._guard.take(identity)
            work.identity = identity
            job = read(place, target, fields, "", body)
            work.start(self._core, job, identity.id)
        except Exception as error:  # whatever it is, the client must hear of it
            work.fail(error)
        return work

    def look_up(self, head: Head) -> "asyncio.Task[Any] | None":
        """The look-up after which `begin` may take what it has refused; None if none helps."""
        place, fields = head.place, head.fields
        if self._core.stopping or self._models.is_unloaded(place.model):
            return None
        if self._guard.admit("POST", place.template, fields) is None:
            return self._guard.look_up(fields)
        return self._models.look_up(place)

    async def begin_soon(self, head: Head, body: bytes, send: Send3) -> "Work | None":
        """Like `begin`, and waits for what must be looked up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LOOKUP_SECONDS
        while (work := self.begin(head, body, send)) is None:
            lookup = self.look_up(head)
            if lookup is None:
                return None
            await asyncio.wait((lookup,), timeout=max(0.0, deadline - loop.time()))
            if not has_found(lookup):
                return None
        return work

    def note(self, place: Place, status: int, seconds: float) -> None:
        """Count an answer."""
        self._figures.note_route("POST", place.template, status, seconds)

    def give_back(self, identity: Identity) -> None:
        """What the guard counted has ended."""
        self._guard.give_back(identity)

    def is_in_flight(self, more: int) -> None:
        """Count what is being answered."""
        self._figures.in_flight += more


class Work:
    """One prediction between its request and its answer."""

    __slots__ = (
        "_began",
        "_has_ended",
        "_head",
        "_id",
        "_job",
        "_path",
        "_send",
        "_span",
        "_ticket",
        "identity",
    )

    def __init__(self, path: FastPath, head: Head, send: Send3, request_id: str) -> None:
        self._path = path
        self._head = head
        self._send = send
        self._id = request_id
        self._began = time.perf_counter()
        self._has_ended = False
        self._job: Job | None = None
        self._ticket: Ticket | None = None
        self.identity: Identity | None = None
        path.is_in_flight(1)
        if path.tracer is not None:
            self._span = path.tracer.begin("POST", head.fields, request_id)

    def start(self, core: Predictions, job: Job, owner: str) -> None:
        """Have the job run."""
        self._job = job
        if self._path.tracer is None:
            self._ticket = core.start(job, owner, self._finish)
            return
        with self._path.tracer.inside(self._span):
            self._ticket = core.start(job, owner, self._finish)

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        if self._ticket is not None:
            self._ticket.cancel()
        if not self._has_ended:
            self._end(499, time.perf_counter() - self._began)

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        path = "/v2/" if self._head.place.model else ""
        status, headers, body = error_answer(path, self._head.fields, error, self._id)
        self._answer(status, headers, body)

    def _finish(self, result: Outcomes | Exception) -> None:
        assert self._job is not None
        if isinstance(result, Exception):
            self.fail(result)
            return
        try:
            body, said = self._job.finish(result)
        except Exception as error:
            self.fail(error)
            return
        headers = [(name.encode(), value.encode()) for name, value in said.items()]
        headers.append((b"content-length", b"%d" % len(body)))
        self._answer(200, headers, body)

    def _answer(self, status: int, headers: RawHeaders, body: bytes) -> None:
        if not self._has_ended:
            took = time.perf_counter() - self._began
            self._send(status, [*headers, *marks(self._id)], body)
            self._end(status, took)  # what is counted, the client need not wait for

    def _end(self, status: int, seconds: float) -> None:
        self._path.note(self._head.place, status, seconds)
        self._path.is_in_flight(-1)
        self._has_ended = True
        self._ticket = None  # which has this object's method: they would wait for a collection
        if self._path.tracer is not None:
            self._path.tracer.end(self._span, "POST", self._head.place.template, status)
        if self.identity is not None:
            self._path.give_back(self.identity)


class FastDoor:
    """ASGI layer before everything: for servers whose protocol class has no fast lane."""

    def __init__(self, app: Application, fast: FastPath) -> None:
        self.app = app
        self.fast = fast

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = self._head(scope)
        if head is None:
            await self.app(scope, receive, send)
            return
        first = await receive()
        body = first.get("body", b"")
        is_whole = first["type"] == "http.request" and not first.get("more_body", False)
        if not is_whole or len(body) > SMALL_BYTES:
            await self.app(scope, _replay(first, receive), send)
            return
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def take(status: int, headers: RawHeaders, body: bytes) -> None:
            if not answer.done():
                answer.set_result((status, headers, body))

        work = await self.fast.begin_soon(head, body, take)
        if work is None:
            await self.app(scope, _replay(first, receive), send)
            return
        try:
            status, headers, body = await unless_gone(receive, answer)
        except ClientDisconnect:
            return
        finally:
            work.abandon()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _head(self, scope: Scope) -> Head | None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
            return None
        if not may_be_small(scope["headers"]):
            return None
        place = find_place(scope.get("raw_path", b"").decode("latin-1"))
        return None if place is None else Head.of(place, scope["headers"])


def _replay(first: Message, receive: Receive) -> Receive:
    """What was received already, once more, then the rest."""
    messages = [first]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


def has_found(lookup: "asyncio.Task[Any]") -> bool:
    """Whether a look-up has ended well."""
    return lookup.done() and not lookup.cancelled() and lookup.exception() is None


def may_be_small(headers: RawHeaders) -> bool:
    """Whether a body is announced that is read in no time, or one of unknown length."""
    for name, value in headers:
        if name == b"content-length":
            return value.isdigit() and int(value) <= SMALL_BYTES
        if name == b"transfer-encoding":
            return value.lower() == b"chunked"
    return False
