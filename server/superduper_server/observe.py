"""The outermost layer: request ids, figures, and the one place where errors become answers."""

import itertools
import logging
import re
import secrets
import time
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from superduper.command import explain
from superduper.errors import InvalidInput, NotFound, SuperduperError
from superduper_server.bodies import JSON, wants_bson, write_error
from superduper_server.limits import Application, Message, MethodNotAllowed, Receive, Scope, Send

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_MESSAGE = 2000
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Figures:
    """What `/metrics` tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "superduper_requests",
            "Answered requests.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "superduper_request_seconds",
            "Time to answer.",
            ("route",),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "superduper_requests_in_flight", "Requests being answered.", registry=self.registry
        )

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one answered request under its route's template, never under its path."""
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if route != "unmatched" else "any"
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)


class Front:
    """ASGI layer around everything: no exception gets past it, every answer has a request id."""

    def __init__(self, app: Application, figures: Figures) -> None:
        self.app = app
        self.figures = figures
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = self._request_id(scope)
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                mark = [
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message["headers"] = [*message.get("headers", ()), *mark]
            await send(message)

        started = time.perf_counter()
        self.figures.in_flight.inc()
        try:
            await self.app(scope, receive, send_marked)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:
            if status:
                raise  # the answer has begun: all that is left is to cut the connection
            await send_error(scope, send_marked, error, request_id)
        finally:
            self.figures.in_flight.dec()
            self.figures.note(scope, status or 499, time.perf_counter() - started)

    def _request_id(self, scope: Scope) -> str:
        given = Headers(scope=scope).get("x-request-id", "")
        return given if REQUEST_ID.fullmatch(given) else f"{self._prefix}-{next(self._numbers)}"


async def send_error(scope: Scope, send: Send, error: Exception, request_id: str) -> None:
    """Answer a request with an error."""
    known = _known(error)
    if known.status >= 500 and known.code == SuperduperError.code:
        logger.error(
            "request %s failed", request_id, exc_info=error, extra={"event": "request.failed"}
        )
    status, message = known.status, known.message[:MAX_MESSAGE]
    if is_v2(scope["path"]):
        status = 400 if status == 422 else status
        body, media_type = orjson.dumps({"error": message}), JSON
    else:
        body, media_type = write_error(
            {"code": known.code, "message": message, "request_id": request_id},
            as_bson=wants_bson(Headers(scope=scope)),
        )
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", str(len(body)).encode()),
        *_headers(known, error),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


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
