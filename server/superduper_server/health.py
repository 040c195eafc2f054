"""Whether the server is alive, whether it can answer, and its figures."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pymongo.errors import PyMongoError

from superduper.errors import SuperduperError
from superduper_server.backend import Backend
from superduper_server.bodies import JSON
from superduper_server.merged_figures import Collected
from superduper_server.observe import Figures
from superduper_server.routes import Router
from superduper_server.watch_figures import WatchFigures

PING_SECONDS = 2.0
METRICS_SECONDS = 5.0
FRESH_SECONDS = 1.0


class Readiness:
    """Asks the database at most once a second, however many ask us."""

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self.backend = backend
        self._clock = clock
        self._lock = asyncio.Lock()
        self._asked_at = -FRESH_SECONDS
        self._reasons: list[str] = []

    async def reasons(self) -> list[str]:
        """Why the server cannot answer; empty if it can."""
        if self.backend.stopping.is_set():
            return ["the server is shutting down"]
        async with self._lock:
            if self._clock() - self._asked_at >= FRESH_SECONDS:
                self._reasons = await self._ask()
                self._asked_at = self._clock()
        return self._reasons

    async def _ask(self) -> list[str]:
        try:
            return await self.backend.troubles(PING_SECONDS)
        except SuperduperError:
            # Everybody may ask, so the answer does not say where the database is.
            return ["the database does not answer"]


def add_health(router: Router, figures: Figures, readiness: Readiness) -> None:
    """`/healthz`, `/readyz` and `/metrics`."""
    backend, watching = readiness.backend, WatchFigures()

    async def healthz(request: Request) -> Response:
        return Response(b'{"alive":true}', media_type=JSON)

    async def readyz(request: Request) -> Response:
        reasons = await readiness.reasons()
        content: dict[str, Any] = {"ready": not reasons, "reasons": reasons}
        headers = {"retry-after": "1"} if reasons else None
        return Response(orjson.dumps(content), 503 if reasons else 200, headers, JSON)

    async def metrics(request: Request) -> Response:
        try:
            await backend.control.run(
                lambda: watching.read(backend.service.context.database), seconds=METRICS_SECONDS
            )
        except (SuperduperError, PyMongoError):
            watching.forget()
        told = [*await backend.group.figures(figures.registry), *watching.collect()]
        return Response(generate_latest(Collected(told)), media_type=CONTENT_TYPE_LATEST)

    probes = (
        ("/healthz", healthz, "Whether the server is alive."),
        ("/readyz", readyz, "Whether the server can answer: 503 with the reasons if not."),
    )
    for path, answer, text in probes:
        said = {"summary": text, "tags": ["server"]}
        router.add_plain("GET", path, answer, None, name=path[1:], **said)
        name = f"{path[1:]}_head"
        router.add_plain("HEAD", path, answer, None, name=name, include_in_schema=False, **said)
    said = {"summary": "Figures for Prometheus.", "tags": ["server"]}
    router.add_plain("GET", "/metrics", metrics, "reader", name="metrics", **said)
