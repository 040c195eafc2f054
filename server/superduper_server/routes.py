"""One route for each command, made from the command: path, query, body, role and documentation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel

from superduper import commands
from superduper.command import Command, Role, words_of
from superduper.errors import InvalidInput
from superduper.service import AUDITED
from superduper_server import bodies
from superduper_server.backend import Backend, unless_gone
from superduper_server.models import MODEL_VERSION_PATH, Place, place_of
from superduper_server.openapi import Schemas, describe
from superduper_server.predict import SMALL_BYTES, Job, read
from superduper_server.tokens import Identity

# `{kind}s` would be "losss": taken, but not shown.
HIDDEN_PLURALS: dict[str, tuple[str, ...]] = {"loss": ("losss",)}
PREDICTIONS = (commands.Predict, commands.PredictImputation)
# Commands whose answers may carry the traceback of a user's code.
TRACEBACKS = (
    commands.ListJobs,
    commands.ShowJob,
    commands.ListFailures,
    commands.ListRuns,
    commands.ShowImputation,
    commands.ExplainPrediction,
)


@dataclass(frozen=True)
class Endpoint:
    """One place in the API: what is asked, how it is answered, who may ask."""

    command: type[BaseModel]
    method: str
    path: str
    role: Role
    status: int
    handle: Callable[[Any, Identity], Any]
    fixed: Mapping[str, Any]
    name: str
    is_shown: bool = True
    takes_long: bool = False

    @property
    def changes(self) -> bool:
        """Whether other versions may be live, or other tokens valid, once it has answered."""
        return self.method != "GET" and self.role in AUDITED


class Router:
    """Adds endpoints to an app and keeps the table of who may use which."""

    def __init__(self, app: FastAPI, backend: Backend) -> None:
        self.app = app
        self.backend = backend
        self.table: dict[tuple[str, str], Role | None] = {}
        self.schemas = Schemas()

    def add(self, endpoint: Endpoint) -> None:
        """One endpoint, described from its command."""
        described = describe(endpoint.command, endpoint.path, endpoint.status, self.schemas)
        self.add_plain(
            endpoint.method,
            endpoint.path,
            self._answering(endpoint),
            endpoint.role,
            name=endpoint.name,
            status_code=endpoint.status,
            include_in_schema=endpoint.is_shown,
            **described,
        )

    def add_plain(
        self,
        method: str,
        path: str,
        answer: Callable[..., Any],
        role: Role | None,
        **described: Any,
    ) -> None:
        """An endpoint that answers by itself; without a role it is for everybody."""
        self.table[method, path] = role
        described.setdefault("operation_id", described.get("name"))
        self.app.add_api_route(path, answer, methods=[method], response_class=Response, **described)

    def _answering(self, endpoint: Endpoint) -> Callable[[Request], Any]:
        backend = self.backend
        if endpoint.command in PREDICTIONS:
            return predicting(backend, endpoint.path)
        pool, limits = backend.requests, backend.limits
        seconds = limits.long_seconds if endpoint.takes_long else limits.seconds

        async def answer(request: Request) -> Response:
            body = await request.body()
            owner = request.scope["identity"].id
            work = pool.run(
                lambda: _answer(endpoint, request, body, backend), seconds=seconds, owner=owner
            )
            content, media_type = await unless_gone(request.receive, work)
            if endpoint.changes:
                backend.models.forget()
            return Response(content, endpoint.status, media_type=media_type)

        return answer


def predicting(backend: Backend, template: str) -> Callable[[Request], Any]:
    """The ordinary door to the core of predictions, for one path."""

    async def answer(request: Request) -> Response:
        body = await request.body()
        place = place_of(template, request.path_params)
        job = _predict(backend, place, request, body)
        content, headers = await unless_gone(request.receive, job)
        return Response(content, headers=headers)

    return answer


async def _predict(backend: Backend, place: Place, request: Request, body: bytes) -> Any:
    job = await _read(backend, place, request, body)
    if job.pinned is not None:
        job = await _read(backend, replace(place, version=job.pinned), request, body)
    outcomes = await backend.core.run(job, request.scope["identity"].id)
    return await _off_loop(backend, request, len(body), lambda: job.finish(outcomes))


async def _read(backend: Backend, place: Place, request: Request, body: bytes) -> Job:
    target = await backend.models.get(place)
    query = request.url.query
    job: Job = await _off_loop(
        backend, request, len(body), lambda: read(place, target, request.headers, query, body)
    )
    return job


async def _off_loop(backend: Backend, request: Request, size: int, call: Callable[[], Any]) -> Any:
    """Do it at once, or where it holds up nobody if it may take long."""
    if size <= SMALL_BYTES:
        return call()
    seconds, owner = backend.limits.predict_seconds, request.scope["identity"].id
    return await backend.predictions.run(call, seconds=seconds, owner=owner)


def _answer(
    endpoint: Endpoint, request: Request, body: bytes, backend: Backend
) -> tuple[bytes, str]:
    """Everything between a request's bytes and its answer's, in a thread of a pool."""
    with bodies.refused_values():
        command = read_command(endpoint.command, endpoint.fixed, request, body)
        if isinstance(command, commands.FindDocuments):
            _check_limit(command, backend.limits.documents)
        result = endpoint.handle(command, request.scope["identity"])
    if endpoint.changes:
        backend.group.tell(changed=True)
    return bodies.write_answer(result, as_bson=bodies.wants_bson(request.headers))


def _check_limit(command: commands.FindDocuments, most: int) -> None:
    if not 1 <= command.limit <= most:
        raise InvalidInput(
            f"limit: from 1 to {most}; for more, use the same body with .../documents/stream"
        )


def read_command(
    command: type[BaseModel], fixed: Mapping[str, Any], request: Request, body: bytes
) -> Any:
    """The checked command that a request asks for.

    Raises InvalidInput that names the first wrong field.
    """
    placed = {**request.path_params, **fixed}
    if request.method in ("GET", "DELETE"):
        return bodies.check_fields(command, placed, _query(request))
    sent = bodies.read_fields(request.headers, request.url.query, body)
    return bodies.check_fields(command, placed, sent)


def _query(request: Request) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in found:
            raise InvalidInput(f"{name[:40]!r} is given twice")
        found[name] = value
    return found


def command_endpoints(backend: Backend) -> list[Endpoint]:
    """An endpoint for every command, one per kind where the path has `{kinds}`."""
    found: list[Endpoint] = []
    for command in commands.all_commands():
        if command is commands.StreamPrediction:  # has endpoints of its own: `piece_streams`
            continue
        handle = _handler(command, backend)
        if "{kinds}" in command.route.path:
            found += _kind_endpoints(command, handle)
        else:
            found.append(_endpoint(command, command.route.path, handle, {}, _snake(command)))
        if command is commands.Predict:
            found.append(_endpoint(command, MODEL_VERSION_PATH, handle, {}, "predict_version"))
    return found


def registering(endpoints: Iterable[Endpoint]) -> frozenset[tuple[str, str]]:
    """Method and path of the endpoints through which code comes in."""
    return frozenset(
        (endpoint.method, endpoint.path)
        for endpoint in endpoints
        if endpoint.command is commands.RegisterComponent
    )


def _kind_endpoints(
    command: type[Command], handle: Callable[[Any, Identity], Any]
) -> list[Endpoint]:
    found = []
    for kind, plural in words_of(command).items():
        name = _snake(command)
        if "component" in name:
            name = name.replace("components", plural).replace("component", kind)
        else:
            name = f"{name}_of_{kind}"
        for word in (plural, *HIDDEN_PLURALS.get(kind, ())):
            path = command.route.path.replace("{kinds}", word)
            found.append(
                _endpoint(command, path, handle, {"kind": kind}, name, is_shown=word == plural)
            )
    return found


def _endpoint(
    command: type[Command],
    path: str,
    handle: Callable[[Any, Identity], Any],
    fixed: Mapping[str, Any],
    name: str,
    *,
    is_shown: bool = True,
) -> Endpoint:
    route = command.route
    return Endpoint(
        command,
        route.method,
        path,
        route.role,
        route.status,
        handle,
        fixed,
        name,
        is_shown,
        route.takes_long,
    )


def _handler(command: type[Command], backend: Backend) -> Callable[[Any, Identity], Any]:
    def handle(built: Command, identity: Identity) -> Any:
        result = backend.service.handle(built, identity.id)
        return result if identity.may("trainer") or command not in TRACEBACKS else untraced(result)

    return handle


def untraced(value: Any) -> Any:
    """An answer without the tracebacks of user code: those are for trainers."""
    if isinstance(value, dict):
        return {key: untraced(each) for key, each in value.items() if key != "traceback"}
    return [untraced(each) for each in value] if isinstance(value, list) else value


def _snake(command: type[BaseModel]) -> str:
    name = command.__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
