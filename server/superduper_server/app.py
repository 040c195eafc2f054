"""The web application: one service on one database, behind one guard."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import superduper
from superduper.service import Service
from superduper_server import openapi
from superduper_server.admin_routes import admin_endpoints
from superduper_server.auth import Authenticator, FailureLimit, Guard, QuickGuard
from superduper_server.backend import Backend
from superduper_server.docs_page import add_docs
from superduper_server.fast import FastDoor, FastPath
from superduper_server.group import Alone, Group
from superduper_server.health import Readiness, add_health
from superduper_server.limits import BodyLimit, Limits
from superduper_server.observe import Figures, Front, RequestIds
from superduper_server.origins import TrustedHosts
from superduper_server.piece_streams import add_piece_streams
from superduper_server.rivals import TrialFigures
from superduper_server.routes import PREDICTIONS, Router, command_endpoints, registering
from superduper_server.shares import Shares
from superduper_server.streams import add_streams
from superduper_server.traces import Tracer
from superduper_server.v2 import add_v2


def build_app(
    service: Service,
    *,
    insecure: bool = False,
    register_code: bool = True,
    limits: Limits | None = None,
    tracer: Tracer | None = None,
    group: Group | None = None,
) -> FastAPI:
    """The app for a service; its database is the one that is served.

    `insecure` asks for no tokens: only for a server that listens on loopback. Without
    `register_code` nobody can register code here, not even an administrator. `group` is what the
    app shares with the other processes of its server, if there are any.
    `app.state.backend` is what its endpoints share; the service is closed by whoever made it.
    """
    limits = limits or Limits.from_settings()
    group, figures = group or Alone.of(service), Figures()
    figures.registry.register(TrialFigures(service.context.tally))
    backend = Backend.of(service, limits, group, tracer)
    app = _bare_app(backend, figures)
    router = Router(app, backend)
    router.table["GET", "/openapi.json"] = None
    endpoints = [*command_endpoints(backend), *admin_endpoints(backend)]
    # Routes are tried in order: what is asked most often, and most in a hurry, comes first.
    for endpoint in sorted(endpoints, key=lambda each: each.command not in PREDICTIONS):
        router.add(endpoint)
    add_streams(router)
    add_piece_streams(router)
    readiness = Readiness(backend)
    add_health(router, figures, readiness)
    add_v2(router, readiness)
    add_docs(router)
    openapi.install(app, router.schemas, router.table)
    authenticator = None
    if not insecure:
        failures = FailureLimit(limits.failed_logins, ledger=group.ledger)
        authenticator = Authenticator(backend.tokens, backend.control, failures)
    app.add_middleware(BodyLimit, limits=limits)
    closed = frozenset() if register_code else registering(endpoints)
    shares, ids = Shares(limits, ledger=group.ledger), RequestIds()
    hosts = TrustedHosts.of(insecure=insecure)
    app.add_middleware(
        Guard,
        table=router.table,
        closed=closed,
        authenticator=authenticator,
        shares=shares,
        hosts=hosts,
    )
    app.add_middleware(Front, figures=figures, ids=ids, tracer=tracer)
    quick = QuickGuard(router.table, authenticator, shares, hosts)
    app.state.fast = FastPath(backend.core, backend.models, quick, figures, ids, tracer)
    app.add_middleware(FastDoor, fast=app.state.fast)
    app.state.backend = backend
    app.state.table = router.table
    return app


def _bare_app(backend: Backend, figures: Figures) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await backend.group.begin(figures.registry, backend.hear)
        yield
        backend.stop()
        await backend.group.end()
        backend.close()

    return FastAPI(
        title="Superduper",
        version=superduper.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers={HTTPException: _pass_on, RequestValidationError: _pass_on},
    )


async def _pass_on(request: Request, error: Exception) -> Response:
    """Errors become answers in one place: the layer around everything."""
    raise error
