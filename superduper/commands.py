"""Everything that can be asked of Superduper: frozen commands, each with its place in the REST API.

A facade builds a command and a transport sends it: to the service in this process, or over HTTP.
A command is checked here, once; behind it values are trusted. Values inside commands and answers
are plain BSON values (rich ones are encoded before by `superduper.fields.codec`).
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field

from superduper.command import (
    CollectionName,
    Command,
    Document,
    Keys,
    Kind,
    Name,
    Path,
    Route,
    Version,
)

_COLLECTION = "/v1/collections/{collection}"


class ListCollections(Command):
    """Names of the collections, with their number of documents and imputations."""

    route = Route("GET", "/v1/collections")


class OnCollection(Command):
    """A command about one collection."""

    collection: CollectionName


# Documents -----------------------------------------------------------------------------------


class InsertDocuments(OnCollection):
    """Insert documents; answers `inserted_ids` in order."""

    route = Route("POST", f"{_COLLECTION}/documents", role="writer", status=201)
    documents: Annotated[list[Document], Field(min_length=1, max_length=10_000)]
    ordered: bool = True


class FindDocuments(OnCollection):
    """Documents that match a filter; a limit of 0 (no limit) is for streams only."""

    route = Route("POST", f"{_COLLECTION}/documents/query")
    filter: Document = {}
    projection: Document | list[str] | None = None
    sort: list[tuple[str, Literal[1, -1]]] | None = None
    skip: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=0)] = 100


class CountDocuments(OnCollection):
    """The number of documents that match a filter."""

    route = Route("POST", f"{_COLLECTION}/documents/count")
    filter: Document = {}


class UpdateDocuments(OnCollection):
    """Change one document, or all that match."""

    route = Route("POST", f"{_COLLECTION}/documents/update", role="writer")
    filter: Document
    update: Document | list[Document]
    many: bool = False
    upsert: bool = False


class ReplaceDocument(OnCollection):
    """Put another document in the place of one."""

    route = Route("POST", f"{_COLLECTION}/documents/replace", role="writer")
    filter: Document
    replacement: Document
    upsert: bool = False


class DeleteDocuments(OnCollection):
    """Delete one document, or all that match."""

    route = Route("POST", f"{_COLLECTION}/documents/delete", role="writer")
    filter: Document
    many: bool = False


class ExplainValue(OnCollection):
    """The whole story of a document's field: what made its value, or why it has none."""

    route = Route("POST", f"{_COLLECTION}/documents/explain")
    id: Any
    field: Path


# Components ----------------------------------------------------------------------------------


class RegisterComponent(OnCollection):
    """Register a sealed object under a name: other content makes a new version, the same none."""

    route = Route("PUT", f"{_COLLECTION}/{{kinds}}/{{name}}", role="trainer", status=201)
    kind: Kind
    name: Name
    sealed: Document
    sample: Any = None
    has_sample: bool = False


class ListComponents(OnCollection):
    """The components of one kind."""

    route = Route("GET", f"{_COLLECTION}/{{kinds}}")
    kind: Kind


class ShowComponent(OnCollection):
    """One component: the live version, or the one asked for."""

    route = Route("GET", f"{_COLLECTION}/{{kinds}}/{{name}}")
    kind: Kind
    name: Name
    version: Version | None = None


class DeleteComponent(OnCollection):
    """Delete a component, or one version of it; refused while something uses it."""

    route = Route("DELETE", f"{_COLLECTION}/{{kinds}}/{{name}}", role="trainer")
    kind: Kind
    name: Name
    version: Version | None = None


# Imputations ---------------------------------------------------------------------------------


class Named(Command):
    """An optimizer, a schedule, a policy or a trainer by name, with arguments."""

    name: str
    arguments: Document = {}


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


NameOrNamed = Annotated[Named, BeforeValidator(_named)]
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class CreateImputation(OnCollection):
    """Declare that `target_key` is predicted from `model_key`, and start the fit."""

    route = Route("POST", f"{_COLLECTION}/imputations", role="trainer", status=201)
    name: Name | None = None
    model: Name
    model_key: Keys
    target: Name | None = None
    target_key: Keys
    loss: Name | None = None
    metrics: tuple[Name, ...] = ()
    filter: Document | None = None
    optimizer: str | Named = "adam"
    lr: LearningRate | Named = 1e-3
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = 64
    max_epochs: Annotated[int, Field(ge=1)] = 200
    max_steps: Annotated[int, Field(ge=1)] | None = None
    patience: Annotated[int, Field(ge=1)] = 10
    watch: str = "loss"
    seed: int | None = None
    mixed_precision: Literal["bf16", "fp16"] | None = None
    trainer: NameOrNamed | None = None
    policies: tuple[NameOrNamed, ...] = ()
    features: dict[str, Name] | None = None
    fill: bool = True
    precision: Annotated[float, Field(gt=0, lt=1)] | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.9
    max_width: Annotated[float, Field(gt=0)] | None = None
    min_confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    on_input_change: Literal["refill", "keep", "clear"] = "refill"
    promote: Literal["if_better", "always", "never"] = "if_better"
    refit_after: Annotated[int, Field(ge=1)] | None = None
    watcher: bool = True


class CreateWatcher(OnCollection):
    """Write a model's output for every document that has `key`, now and from now on."""

    route = Route("POST", f"{_COLLECTION}/watchers", role="trainer", status=201)
    name: Name
    model: Name
    key: Keys
    target: Path | None = None
    filter: Document | None = None
    features: dict[str, Name] | None = None


class ListImputations(OnCollection):
    """The imputations and watchers of a collection."""

    route = Route("GET", f"{_COLLECTION}/imputations")


class OnImputation(OnCollection):
    """A command about one imputation."""

    name: Name


_IMPUTATION = f"{_COLLECTION}/imputations/{{name}}"


class ShowImputation(OnImputation):
    """One imputation: what it is, its state, its progress, its live version."""

    route = Route("GET", _IMPUTATION)


class DeleteImputation(OnImputation):
    """Stop and forget an imputation; values that it filled stay."""

    route = Route("DELETE", _IMPUTATION, role="trainer")


class RefitImputation(OnImputation):
    """Train a new version on what is there now."""

    route = Route("POST", f"{_IMPUTATION}/refit", role="trainer", status=202)


class PromoteVersion(OnImputation):
    """Make a version the live one."""

    route = Route("POST", f"{_IMPUTATION}/promote", role="trainer")
    version: Version


class RollbackImputation(OnImputation):
    """Make the version that was live before live again, and let it refill the other's values."""

    route = Route("POST", f"{_IMPUTATION}/rollback", role="trainer")
    refill: bool = False


class RevertVersion(OnImputation):
    """Take back every value that a version filled and that nobody changed since."""

    route = Route("POST", f"{_IMPUTATION}/revert", role="trainer")
    version: Version
    force: bool = False


class RedoVersion(OnImputation):
    """Put back what a revert took, where what it left still stands."""

    route = Route("POST", f"{_IMPUTATION}/redo", role="trainer")
    version: Version


class PreviewImputation(OnImputation):
    """What would be filled in a few documents; writes nothing."""

    route = Route("POST", f"{_IMPUTATION}/preview")
    n: Annotated[int, Field(ge=1, le=1000)] = 10


class PauseImputation(OnImputation):
    """Stop filling until resumed."""

    route = Route("POST", f"{_IMPUTATION}/pause", role="trainer")


class ResumeImputation(OnImputation):
    """Go on filling, beginning with what was missed."""

    route = Route("POST", f"{_IMPUTATION}/resume", role="trainer")


class RetryFailures(OnImputation):
    """Try the documents that failed once more."""

    route = Route("POST", f"{_IMPUTATION}/failures/retry", role="writer")


class ListFailures(OnImputation):
    """Documents that could not be filled, with the reason."""

    route = Route("GET", f"{_IMPUTATION}/failures")
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class ListVersions(OnImputation):
    """The versions of an imputation, newest first."""

    route = Route("GET", f"{_IMPUTATION}/versions")
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class ShowHistory(OnImputation):
    """Which version was live when, and who made it so; newest first."""

    route = Route("GET", f"{_IMPUTATION}/history")
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class CountStates(OnImputation):
    """The number of documents in each state."""

    route = Route("GET", f"{_IMPUTATION}/counts")


class ListStates(OnImputation):
    """A page of the documents in one state; `after` of one page begins the next."""

    route = Route("POST", f"{_IMPUTATION}/documents/query")
    state: str
    after: Document | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


# Predictions ---------------------------------------------------------------------------------


class Predict(OnCollection):
    """Outputs of a registered model, one for each input and in order."""

    route = Route("POST", f"{_COLLECTION}/models/{{name}}/predict")
    name: Name
    inputs: Annotated[list[Any], Field(max_length=10_000)]
    version: Version | None = None


class PredictImputation(OnImputation):
    """Outputs of an imputation's live version."""

    route = Route("POST", f"{_IMPUTATION}/predict")
    inputs: Annotated[list[Any], Field(max_length=10_000)]


# Jobs and runs -------------------------------------------------------------------------------


class ListJobs(Command):
    """Jobs, newest first."""

    route = Route("GET", "/v1/jobs")
    state: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 50


class ShowJob(Command):
    """One job: its state, progress, result or error."""

    route = Route("GET", "/v1/jobs/{id}")
    id: Annotated[str, Field(max_length=64)]


class CancelJob(Command):
    """Ask a job to stop."""

    route = Route("POST", "/v1/jobs/{id}/cancel", role="trainer")
    id: Annotated[str, Field(max_length=64)]


class ListRuns(Command):
    """Trainings, newest first."""

    route = Route("GET", "/v1/runs")
    collection: CollectionName | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 50


class ShowRun(Command):
    """One training with its history: a row per epoch, and rows about steps."""

    route = Route("GET", "/v1/runs/{id}")
    id: Annotated[str, Field(max_length=64)]


class Highscores(Command):
    """Finished runs ranked by a metric, comparable where their test data's hash is equal."""

    route = Route("GET", "/v1/highscores")
    collection: CollectionName | None = None
    metric: str | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 50


class ShowStatus(Command):
    """Workers, imputations, backlog and jobs at a glance."""

    route = Route("GET", "/v1/status")


class Transport(Protocol):
    """Where commands go. May block; raises the classes of `superduper.errors`."""

    def send(self, command: Command) -> Any: ...

    def stream(self, command: FindDocuments) -> Iterator[dict[str, Any]]: ...

    def close(self) -> None: ...


def all_commands() -> list[type[Command]]:
    """Every command that has a route, in the order of this page."""
    found: list[type[Command]] = []

    def visit(base: type[Command]) -> None:
        for child in base.__subclasses__():
            if "route" in child.__dict__:
                found.append(child)
            visit(child)

    visit(Command)
    return sorted(found, key=lambda command: list(globals()).index(command.__name__))
