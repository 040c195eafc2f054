"""The Open Inference Protocol under /v2: a model is `<collection>.<model>`.

Models are loaded when they are first asked, and count as ready unless somebody has unloaded them;
what was unloaded answers 503 on this server until it is loaded again.
"""

from collections.abc import Callable
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response

from superduper.command import Role
from superduper.handlers import predictions
from superduper.serving.batches import MAX_BATCH_SIZE
from superduper.serving.hosts import batching
from superduper.serving.signature import Tensor
from superduper.store.component import Component, head_id
from superduper.version import __version__
from superduper_server import bodies, v2_tensors
from superduper_server.backend import Backend
from superduper_server.bodies import JSON
from superduper_server.health import Readiness
from superduper_server.model_figures import statistics_of
from superduper_server.models import V2_PATH, place_of
from superduper_server.openapi import error_answers
from superduper_server.routes import Router, predicting
from superduper_server.v2_format import Signature
from superduper_server.v2_tensors import datatype_of

EXTENSIONS = ("binary_tensor_data", "model_repository", "model_configuration", "statistics")
PLATFORM = "superduper"
MODEL_PATH = "/v2/models/{model}"
VERSION_PATH = f"{MODEL_PATH}/versions/{{version}}"
REPOSITORY_PATH = "/v2/repository/models/{model}"


class Repository:
    """The registered models, as the protocol speaks of them. Every method may block."""

    def __init__(self, backend: Backend) -> None:
        self._context = backend.service.context
        self._registry = self._context.registry
        self._hosts = self._context.hosts
        self._models = backend.models
        self._group = backend.group

    def find(self, model: str, version: str | None) -> Component:
        """The version asked for, or the live one.

        Raises NotFound, or InvalidInput for what is no version.
        """
        fields = {"model": model} if version is None else {"model": model, "version": version}
        component, _ = predictions.find(self._context, place_of(V2_PATH, fields).command)
        return component

    def is_ready(self, model: str, version: str | None) -> bool:
        """Whether a model would be answered for.

        Raises NotFound if there is none.
        """
        component = self.find(model, version)
        return not self._models.is_unloaded(model) and component.id not in self._troubles()

    def load(self, model: str) -> None:
        """Have the live version ready."""
        self._hosts.load(self.find(model, None))
        self._mark(model, loaded=True)

    def unload(self, model: str) -> None:
        """Let every version go, and answer for none until it is loaded again."""
        component = self.find(model, None)
        self._mark(model, loaded=False)
        for version in self._registry.versions(component.collection, "model", component.name):
            self._hosts.unload(f"{component.id.rpartition('@')[0]}@{version}")

    def _mark(self, model: str, *, loaded: bool) -> None:
        self._models.mark(model, loaded=loaded)
        self._group.tell(model=model, loaded=loaded)

    def index(self, *, ready_only: bool) -> list[dict[str, str]]:
        """Every model, with its live version and its state."""
        rows, troubles = [], self._troubles()
        for collection, name, version in self._registry.list_all("model"):
            model = f"{collection}.{name}"
            reason = troubles.get(f"{head_id(collection, 'model', name)}@{version}", "")
            if self._models.is_unloaded(model):
                reason = "unloaded"
            state = "UNAVAILABLE" if reason else "READY"
            row = {"name": model, "version": str(version), "state": state, "reason": reason}
            if not reason or not ready_only:
                rows.append(row)
        return rows

    def _troubles(self) -> dict[str, str]:
        """The versions that are given up for a while, each with the reason."""
        return {state.id: state.trouble for state in self._hosts.states() if state.trouble}

    def metadata(self, model: str, version: str | None) -> dict[str, Any]:
        """Name, versions, and what the model takes and gives."""
        component = self.find(model, version)
        signature = Signature.of(component.details)
        found = self._registry.versions(component.collection, "model", component.name)
        form = self._form(component.id)
        return {
            "name": model,
            "versions": [str(each) for each in reversed(found)],
            "platform": PLATFORM,
            "inputs": [_described(tensor) for tensor in signature.inputs],
            "outputs": [_described(tensor) for tensor in signature.outputs],
            **({} if form is None else {"parameters": {"form": form}}),
        }

    def _form(self, component_id: str) -> str | None:
        """The form that serves here, if one was wished for and the model is loaded."""
        forms = {state.id: state.form for state in self._hosts.states()}
        form = forms.get(component_id)
        return None if form is None else str(form["serves"])

    def statistics(self, model: str | None, version: str | None) -> dict[str, Any]:
        """What was counted of one model, or of all, while they are loaded on this server."""
        wanted = None if model is None else self.find(model, version)
        rows = []
        for state in self._hosts.states():
            head, _, number = state.id.rpartition("@")
            collection, _, name = head.split("/")
            is_wanted = wanted is None or head == wanted.id.rpartition("@")[0]
            if is_wanted and (version is None or version == number):
                rows.append(statistics_of(f"{collection}.{name}", state))
        return {"model_stats": rows}

    def config(self, model: str, version: str | None) -> dict[str, Any]:
        """The same in the words of the model configuration extension."""
        component = self.find(model, version)
        signature = Signature.of(component.details)
        return {
            "name": model,
            "platform": PLATFORM,
            "backend": PLATFORM,
            "max_batch_size": batching(component).get("max_batch_size", MAX_BATCH_SIZE),
            "input": [_configured(tensor) for tensor in signature.inputs],
            "output": [_configured(tensor) for tensor in signature.outputs],
        }


def _described(tensor: Tensor) -> dict[str, Any]:
    datatype = datatype_of(tensor["dtype"])
    return {"name": tensor["name"], "datatype": datatype, "shape": [-1, *tensor["shape"]]}


def _configured(tensor: Tensor) -> dict[str, Any]:
    datatype = datatype_of(tensor["dtype"])
    data_type = "TYPE_STRING" if datatype == v2_tensors.BYTES else f"TYPE_{datatype}"
    return {"name": tensor["name"], "data_type": data_type, "dims": tensor["shape"] or [1]}


# Routes --------------------------------------------------------------------------------------


def add_v2(router: Router, readiness: Readiness) -> None:
    """All routes of the protocol."""
    repository = Repository(router.backend)
    _add_server(router, readiness)
    _add_models(router, repository)
    _add_repository(router, repository)


def _add(
    router: Router,
    method: str,
    path: str,
    answer: Callable[..., Any],
    role: Role | None,
    name: str,
    summary: str,
    *,
    is_shown: bool = True,
) -> None:
    parameters = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for part in path.split("/")
        if part.startswith("{")
    ]
    router.add_plain(
        method,
        path,
        answer,
        role,
        name=name,
        summary=summary,
        tags=["v2"],
        include_in_schema=is_shown,
        openapi_extra={"parameters": parameters, "responses": error_answers("V2Error")},
    )


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type=JSON)


def _add_server(router: Router, readiness: Readiness) -> None:
    async def metadata(request: Request) -> Response:
        return _json({"name": PLATFORM, "version": __version__, "extensions": EXTENSIONS})

    async def live(request: Request) -> Response:
        return _json({"live": True})

    async def ready(request: Request) -> Response:
        is_ready = not await readiness.reasons()
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    _add(router, "GET", "/v2", metadata, "reader", "v2_server", "Name, version and extensions.")
    _add(router, "GET", "/v2/", metadata, "reader", "v2_server_slash", "The same.", is_shown=False)
    _add(router, "GET", "/v2/health/live", live, None, "v2_live", "Whether the server is alive.")
    _add(router, "GET", "/v2/health/ready", ready, None, "v2_ready", "Whether it can answer.")


def _add_models(router: Router, repository: Repository) -> None:
    backend = router.backend

    async def ready(request: Request) -> Response:
        model, version = _asked(request)
        is_ready = await _run(backend, request, lambda: repository.is_ready(model, version))
        return _json({"name": model, "ready": is_ready}, 200 if is_ready else 503)

    def told(tell: Callable[[str, str | None], Any]) -> Callable[..., Any]:
        async def answer(request: Request) -> Response:
            model, version = _asked(request)
            return _json(await _run(backend, request, lambda: tell(model, version)))

        return answer

    async def all_statistics(request: Request) -> Response:
        return _json(await _run(backend, request, lambda: repository.statistics(None, None)))

    summary = "What was counted of every model."
    _add(router, "GET", "/v2/models/stats", all_statistics, "reader", "v2_stats", summary)
    for path, of in ((MODEL_PATH, "model"), (VERSION_PATH, "version")):
        for method, rest, answer, name, summary in (
            ("GET", "", told(repository.metadata), "metadata", "What a model takes and gives."),
            ("GET", "/ready", ready, "ready", "Whether a model can answer."),
            ("GET", "/stats", told(repository.statistics), "stats", "What was counted of a model."),
            ("GET", "/config", told(repository.config), "config", "A model's configuration."),
            (
                "POST",
                "/infer",
                predicting(backend, f"{path}/infer"),
                "infer",
                "Outputs of a model.",
            ),
        ):
            _add(router, method, path + rest, answer, "reader", f"v2_{of}_{name}", summary)


def _add_repository(router: Router, repository: Repository) -> None:
    backend = router.backend

    async def index(request: Request) -> Response:
        ready_only = bodies.parse_object(await request.body() or b"{}").get("ready", False) is True
        return _json(await _run(backend, request, lambda: repository.index(ready_only=ready_only)))

    def changed(change: Callable[[str], None]) -> Callable[..., Any]:
        async def answer(request: Request) -> Response:
            bodies.parse_object(await request.body() or b"{}")
            model, _ = _asked(request)
            await _run(backend, request, lambda: change(model), seconds=backend.limits.long_seconds)
            return _json({})

        return answer

    summary = "Every model and its state."
    _add(router, "POST", "/v2/repository/index", index, "reader", "v2_repository_index", summary)
    for word, change, summary in (
        ("load", repository.load, "Have a model loaded."),
        ("unload", repository.unload, "Let a model go."),
    ):
        path = f"{REPOSITORY_PATH}/{word}"
        _add(router, "POST", path, changed(change), "trainer", f"v2_{word}_model", summary)


async def _run(
    backend: Backend, request: Request, call: Callable[[], Any], seconds: float | None = None
) -> Any:
    seconds, owner = seconds or backend.limits.seconds, request.scope["identity"].id
    return await backend.requests.run(call, seconds=seconds, owner=owner)


def _asked(request: Request) -> tuple[str, str | None]:
    return request.path_params["model"], request.path_params.get("version")
