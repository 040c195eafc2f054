"""What the endpoints of one app share: the service, the tokens, the pools of threads."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect

from superduper.imputations import readiness
from superduper.service import Service
from superduper.store.mongo import database_errors
from superduper_server.group import Group
from superduper_server.limits import Limits
from superduper_server.models import Models
from superduper_server.pool import Pool
from superduper_server.predict import Predictions
from superduper_server.tokens import Tokens
from superduper_server.traces import Tracer

STREAMS = "streams"
"""In the ledger, where no token has this name."""


@dataclass
class Backend:
    """The parts behind an app; `stopping` is set when the server begins to shut down."""

    service: Service
    tokens: Tokens
    limits: Limits
    requests: Pool
    predictions: Pool
    pieces: Pool
    control: Pool
    models: Models
    core: Predictions
    group: Group
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(
        cls, service: Service, limits: Limits, group: Group, tracer: Tracer | None = None
    ) -> "Backend":
        """The parts for a service; predictions and what keeps the server in order wait apart."""
        control = Pool("checks", threads=4, waiting=limits.waiting)
        return cls(
            service=service,
            tokens=Tokens(service.context.database),
            limits=limits,
            requests=Pool("requests", threads=limits.threads, waiting=limits.waiting),
            predictions=Pool(
                "predictions", threads=limits.predict_threads, waiting=limits.predict_waiting
            ),
            pieces=Pool("pieces", threads=limits.predict_threads, waiting=limits.streams),
            control=control,
            models=Models(service, control),
            core=Predictions(service, limits.predict_seconds, tracer=tracer),
            group=group,
        )

    @property
    def streams(self) -> int:
        """How many streams are open, in all processes of the server."""
        return self.group.ledger.held(STREAMS)

    def hear(self, news: Mapping[str, Any]) -> None:
        """Take note of what happened in another process of the server."""
        if "model" in news:
            self.models.mark(news["model"], loaded=news["loaded"])
        if "revoked" in news:
            self.tokens.note_revoked(news["revoked"])
        self.models.forget()

    async def troubles(self, seconds: float) -> list[str]:
        """Why what should be filled is not; empty if all is well.

        Raises NotReady if the database does not answer, TimedOut if not in time.
        """
        return await self.control.run(self._troubles, seconds=seconds)

    def _troubles(self) -> list[str]:
        database = self.service.context.database
        with database_errors():
            database.command("ping")
            return readiness.troubles(database)

    def stop(self) -> None:
        """Begin no more: what was begun may end."""
        self.stopping.set()
        self.core.stopping = True

    def close(self) -> None:
        """Let the threads go; the service belongs to whoever made it."""
        for pool in (self.requests, self.predictions, self.pieces, self.control):
            pool.close()


async def unless_gone(receive: Callable[[], Any], work: Any) -> Any:
    """The result of some work, given up when the client has hung up.

    Raises ClientDisconnect then, so that a call that still waits for a thread is not begun.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            gone.result()
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _gone(receive: Callable[[], Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
