"""The outermost layer: request ids, figures, and the one place where errors become answers."""

import itertools
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from superduper.command import explain
from superduper.errors import InvalidInput, NotFound, SuperduperError
from superduper.serving.times import Times
from superduper_server.bodies import JSON, wants_bson, write_error
from superduper_server.limits import Application, Message, MethodNotAllowed, Receive, Scope, Send
from superduper_server.traces import Tracer

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_MESSAGE = 2000


class Figures:
    """What `/metrics` tells; counting is cheap, and the work is done when somebody asks.

    For the event loop's thread.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(self)
        self.in_flight = 0
        self._counts: Counter[tuple[str, str, int]] = Counter()
        self._times: dict[str, Times] = {}

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one answered request under its route's template, never under its path."""
        self.note_route(*route_of(scope), status, seconds)

    def note_route(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request of a route."""
        self._counts[method, route, status] += 1
        times = self._times.get(route)
        if times is None:
            times = self._times[route] = Times()
        times.add(seconds)

    def collect(self) -> Iterator[Metric]:
        """The figures, as the library asks for them."""
        labels = ("method", "route", "status")
        requests = CounterMetricFamily("superduper_requests", "Answered requests.", labels=labels)
        for (method, route, status), count in self._counts.items():
            requests.add_metric((method, route, str(status)), count)
        yield requests
        seconds = HistogramMetricFamily(
            "superduper_request_seconds", "Time to answer.", labels=("route",)
        )
        for route, times in self._times.items():
            seconds.add_metric((route,), times.buckets(), times.total)
        yield seconds
        yield GaugeMetricFamily(
            "superduper_requests_in_flight", "Requests being answered.", self.in_flight
        )


def route_of(scope: Scope) -> tuple[str, str]:
    """Method and route of a request, neither of which grows with what people send."""
    route = getattr(scope.get("route"), "path", "unmatched")
    return (scope["method"] if route != "unmatched" else "any"), route


class RequestIds:
    """An id for each request: the sender's if it is one, else a number of our own."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def of(self, given: str) -> str:
        """The id of a request that came with this one, or with none."""
        if given and REQUEST_ID.fullmatch(given):
            return given
        return f"{self._prefix}-{next(self._numbers)}"


def marks(request_id: str) -> list[tuple[bytes, bytes]]:
    """The headers that every answer has."""
    return [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]


class Front:
    """ASGI layer around everything: no exception gets past it, every answer has a request id."""

    def __init__(
        self,
        app: Application,
        figures: Figures,
        ids: RequestIds,
        tracer: Tracer | None = None,
    ) -> None:
        self.app = app
        self.tracer = tracer
        self.figures = figures
        self.ids = ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = self.ids.of(Headers(scope=scope).get("x-request-id", ""))
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *marks(request_id)]
            await send(message)

        started = time.perf_counter()
        self.figures.in_flight += 1
        tracer, span = self.tracer, None
        if tracer is not None:
            span = tracer.begin(scope["method"], Headers(scope=scope), request_id)
        try:
            with nullcontext() if tracer is None else tracer.inside(span):
                await self.app(scope, receive, send_marked)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:
            if status:
                raise  # the answer has begun: all that is left is to cut the connection
            await send_error(scope, send_marked, error, request_id)
        finally:
            self.figures.in_flight -= 1
            self.figures.note(scope, status or 499, time.perf_counter() - started)
            if tracer is not None:
                tracer.end(span, *route_of(scope), status or 499)


async def send_error(scope: Scope, send: Send, error: Exception, request_id: str) -> None:
    """Answer a request with an error."""
    status, headers, body = error_answer(scope["path"], Headers(scope=scope), error, request_id)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_answer(
    path: str, headers: Mapping[str, str], error: Exception, request_id: str
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer to a request that led to an error."""
    known = _known(error)
    if known.status >= 500 and known.code == SuperduperError.code:
        logger.error(
            "request %s failed",
            request_id,
            exc_info=error,
            extra={"event": "request.failed", "request_id": request_id},
        )
    status, message = known.status, known.message[:MAX_MESSAGE]
    if is_v2(path):
        status = 400 if status == 422 else status
        body, media_type = orjson.dumps({"error": message}), JSON
    else:
        body, media_type = write_error(
            {"code": known.code, "message": message, "request_id": request_id},
            as_bson=wants_bson(headers),
        )
    said = [
        (b"content-type", media_type.encode()),
        (b"content-length", str(len(body)).encode()),
        *_headers(known, error),
    ]
    return status, said, body


def is_v2(path: str) -> bool:
    """Whether a path belongs to the Open Inference Protocol, which has errors of its own form."""
    return path == "/v2" or path.startswith("/v2/")


def _known(error: Exception) -> SuperduperError:
    if isinstance(error, HTTPException):
        return _of_status(error)
    if isinstance(error, RequestValidationError):
        return InvalidInput(_explain(error.errors()))
    if isinstance(error, ValidationError):
        return InvalidInput(explain(error))
    if isinstance(error, SuperduperError) and type(error) is not SuperduperError:
        return error
    return SuperduperError(
        "an error inside the server; its log has the details under this request_id"
    )


def told(error: Exception) -> dict[str, str]:
    """Code and message of an error that comes too late for a status."""
    known = _known(error)
    if known.code == SuperduperError.code:
        logger.error("a stream broke", exc_info=error, extra={"event": "stream.failed"})
    return {"code": known.code, "message": known.message[:MAX_MESSAGE]}


def _of_status(error: HTTPException) -> SuperduperError:
    if error.status_code == 404:
        return NotFound("there is no such path; /docs lists those there are")
    if error.status_code == 405:
        return MethodNotAllowed("the path does not take this method; /docs lists what it takes")
    return SuperduperError(str(error.detail))


def _explain(errors: Any) -> str:
    first = errors[0] if errors else {"loc": (), "msg": "invalid"}
    where = ".".join(str(part) for part in first["loc"][:4])
    return f"{where}: {first['msg']}"[:400]


def _headers(known: SuperduperError, error: Exception) -> list[tuple[bytes, bytes]]:
    headers: list[tuple[bytes, bytes]] = []
    if known.status in (429, 503):
        headers.append((b"retry-after", str(getattr(error, "retry_after", 1)).encode()))
    if known.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if known.status in (401, 413, 429, 504):
        # The rest of a body may still be coming: do not read it to the end.
        headers.append((b"connection", b"close"))
    if isinstance(error, HTTPException) and error.headers:
        headers += [(k.lower().encode(), v.encode()) for k, v in error.headers.items()]
    return headers
