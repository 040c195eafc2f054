"""How much one server takes on: sizes, times and queues, and the layer that counts a body."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

from superduper import settings
from superduper.errors import InvalidInput, TimedOut, TooLarge, TooManyRequests

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """The limits of one server; seconds are deadlines of a request.

    A body may take `receive_seconds` and as long again as it takes at `least_rate` bytes a second;
    an answer must be read as fast.
    """

    body_bytes: int = 64 * 1024 * 1024
    all_bodies_bytes: int = 256 * 1024 * 1024
    receive_seconds: float = 30.0
    least_rate: int = 32 * 1024
    head_bytes: int = 32 * 1024
    headers: int = 100
    head_seconds: float = 10.0
    connections: int = 10_000
    address_connections: int = 512
    threads: int = 32
    waiting: int = 256
    predict_threads: int = 16
    predict_waiting: int = 256
    seconds: float = 30.0
    long_seconds: float = 600.0
    predict_seconds: float = 35.0
    streams: int = 200
    documents: int = 1000
    failed_logins: int = 10
    token_rate: float = 2000.0
    token_at_once: int = 128

    @classmethod
    def from_settings(cls) -> "Limits":
        """The limits that the environment asks for."""
        return cls(
            body_bytes=int(settings.get_number("BODY_LIMIT_MB") * 1024 * 1024),
            # The prediction's own deadline comes first: it ends the process that hangs.
            predict_seconds=settings.get_number("PREDICT_TIMEOUT") + 5,
            token_rate=settings.get_number("TOKEN_RATE"),
            token_at_once=int(settings.get_number("TOKEN_AT_ONCE")),
            address_connections=int(settings.get_number("ADDRESS_CONNECTIONS")),
        )

    def for_one_of(self, processes: int) -> "Limits":
        """The part of one process among several: what is counted together stays as it is."""
        share = self.all_bodies_bytes // processes
        return replace(self, all_bodies_bytes=max(share, self.body_bytes))


class BodyLimit:
    """ASGI layer: refuses a body that is too large, counted as received, or that comes too slowly.

    What all requests hold at once is limited as well, so that large bodies wait their turn.
    """

    def __init__(self, app: Application, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self._check_headers(scope)
        body = _Body(self, receive)
        try:
            await self.app(scope, body.receive, send)
        finally:
            self._held -= body.received

    def hold(self, size: int) -> None:
        """Count bytes that a request holds from now on.

        Raises TooManyRequests if all requests together hold too many.
        """
        self._held += size
        if self._held > self.limits.all_bodies_bytes:
            raise TooManyRequests("too many large requests at once: try again in a moment")

    def too_large(self) -> TooLarge:
        """The error for a body over the limit."""
        return TooLarge(
            f"the request's body is larger than {self.limits.body_bytes} bytes; "
            "send less at a time, or raise SUPERDUPER_BODY_LIMIT_MB on the server"
        )

    def _check_headers(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if (
                name == b"content-length"
                and value.isdigit()
                and int(value) > self.limits.body_bytes
            ):
                raise self.too_large()
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise UnsupportedMediaType(
                    "send the body uncompressed: no Content-Encoding is taken"
                )


class _Body:
    """The body of one request while it comes in."""

    def __init__(self, layer: BodyLimit, receive: Receive) -> None:
        self.received = 0
        self._layer = layer
        self._receive = receive
        self._is_complete = False
        self._began = asyncio.get_running_loop().time()

    async def receive(self) -> Message:
        """The next message, in time."""
        if self._is_complete:
            return await self._receive()
        message = await self._receive_in_time()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.received += size
            self._is_complete = not message.get("more_body", False)
            self._layer.hold(size)
            if self.received > self._layer.limits.body_bytes:
                raise self._layer.too_large()
        return message

    async def _receive_in_time(self) -> Message:
        limits = self._layer.limits
        seconds = limits.receive_seconds + self.received / limits.least_rate
        try:
            async with asyncio.timeout_at(self._began + seconds):
                return await self._receive()
        except TimeoutError as error:
            raise TimedOut(
                f"the request's body was not there after {seconds:g} seconds: it must come at "
                f"{limits.least_rate} bytes a second or faster"
            ) from error


class MalformedBody(InvalidInput):
    """The request's body cannot be read."""

    status = 400


class UnsupportedMediaType(InvalidInput):
    """The request's body is of a type that is not taken."""

    status = 415


class MethodNotAllowed(InvalidInput):
    """The path exists, but not for this method."""

    status = 405
