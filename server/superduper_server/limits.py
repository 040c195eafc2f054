"""How much one server takes on: sizes, times and queues, and the layer that counts a body."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from superduper import settings
from superduper.errors import InvalidInput, TimedOut, TooLarge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """The limits of one server; seconds are deadlines of a request."""

    body_bytes: int = 64 * 1024 * 1024
    receive_seconds: float = 30.0
    threads: int = 32
    waiting: int = 256
    predict_threads: int = 16
    predict_waiting: int = 256
    seconds: float = 30.0
    long_seconds: float = 600.0
    predict_seconds: float = 35.0
    streams: int = 100
    documents: int = 1000
    failed_logins: int = 10

    @classmethod
    def from_settings(cls) -> "Limits":
        """The limits that the environment asks for."""
        return cls(
            body_bytes=int(settings.get_number("BODY_LIMIT_MB") * 1024 * 1024),
            # The prediction's own deadline comes first: it ends the process that hangs.
            predict_seconds=settings.get_number("PREDICT_TIMEOUT") + 5,
        )


class BodyLimit:
    """ASGI layer: refuses a body that is too large, counted as received, or that never comes."""

    def __init__(self, app: Application, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self._check_headers(scope)
        await self.app(scope, self._counted(receive), send)

    def _check_headers(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if (
                name == b"content-length"
                and value.isdigit()
                and int(value) > self.limits.body_bytes
            ):
                raise self._too_large()
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise UnsupportedMediaType(
                    "send the body uncompressed: no Content-Encoding is taken"
                )

    def _counted(self, receive: Receive) -> Receive:
        received = 0
        complete = False

        async def counted() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            message = await self._receive_in_time(receive)
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received > self.limits.body_bytes:
                    raise self._too_large()
            return message

        return counted

    async def _receive_in_time(self, receive: Receive) -> Message:
        try:
            async with asyncio.timeout(self.limits.receive_seconds):
                return await receive()
        except TimeoutError as error:
            raise TimedOut(
                f"nothing was received for {self.limits.receive_seconds:g} seconds"
            ) from error

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the request's body is larger than {self.limits.body_bytes} bytes; "
            "send less at a time, or raise SUPERDUPER_BODY_LIMIT_MB on the server"
        )


class MalformedBody(InvalidInput):
    """The request's body cannot be read."""

    status = 400


class UnsupportedMediaType(InvalidInput):
    """The request's body is of a type that is not taken."""

    status = 415


class MethodNotAllowed(InvalidInput):
    """The path exists, but not for this method."""

    status = 405
