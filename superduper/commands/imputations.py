"""Commands about imputations and watchers."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from superduper.command import (
    COLLECTION,
    Command,
    Document,
    Keys,
    Limit,
    Name,
    OnCollection,
    Path,
    Route,
    Version,
)


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

    route = Route("POST", f"{COLLECTION}/imputations", role="trainer", status=201)
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
    processes: Annotated[int, Field(ge=1, le=64)] | None = None
    trainer: NameOrNamed | None = None
    policies: tuple[NameOrNamed, ...] = ()
    features: dict[str, Name] | None = None
    fill: bool = True
    precision: Annotated[float, Field(gt=0, lt=1)] | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.9
    max_width: Annotated[float, Field(gt=0)] | None = None
    min_confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    out_of_domain: Annotated[float, Field(gt=0, lt=1)] | None = None
    on_input_change: Literal["refill", "keep", "clear"] = "refill"
    promote: Literal["if_better", "always", "never"] = "if_better"
    refit_after: Annotated[int, Field(ge=1)] | None = None
    watcher: bool = True


class CreateWatcher(OnCollection):
    """Write a model's output for every document that has `key`, now and from now on."""

    route = Route("POST", f"{COLLECTION}/watchers", role="trainer", status=201)
    name: Name
    model: Name
    key: Keys
    target: Path | None = None
    filter: Document | None = None
    features: dict[str, Name] | None = None


class ListImputations(OnCollection):
    """The imputations and watchers of a collection."""

    route = Route("GET", f"{COLLECTION}/imputations")


class OnImputation(OnCollection):
    """A command about one imputation."""

    name: Name


IMPUTATION = f"{COLLECTION}/imputations/{{name}}"


class ShowImputation(OnImputation):
    """One imputation: what it is, its state, its progress, its live version."""

    route = Route("GET", IMPUTATION)


class DeleteImputation(OnImputation):
    """Stop and forget an imputation; values that it filled stay."""

    route = Route("DELETE", IMPUTATION, role="trainer")


class RefitImputation(OnImputation):
    """Train a new version on what is there now."""

    route = Route("POST", f"{IMPUTATION}/refit", role="trainer", status=202)


class PromoteVersion(OnImputation):
    """Make a version the live one."""

    route = Route("POST", f"{IMPUTATION}/promote", role="trainer")
    version: Version


class RollbackImputation(OnImputation):
    """Make the version that was live before live again, and let it refill the other's values."""

    route = Route("POST", f"{IMPUTATION}/rollback", role="trainer")
    refill: bool = False


class RevertVersion(OnImputation):
    """Take back every value that a version filled and that nobody changed since."""

    route = Route("POST", f"{IMPUTATION}/revert", role="trainer", takes_long=True)
    version: Version
    force: bool = False


class RedoVersion(OnImputation):
    """Put back what a revert took, where what it left still stands."""

    route = Route("POST", f"{IMPUTATION}/redo", role="trainer")
    version: Version


class PreviewImputation(OnImputation):
    """What would be filled in a few documents; writes nothing."""

    route = Route("POST", f"{IMPUTATION}/preview", takes_long=True)
    n: Limit = 10


class PauseImputation(OnImputation):
    """Stop filling until resumed."""

    route = Route("POST", f"{IMPUTATION}/pause", role="trainer")


class ResumeImputation(OnImputation):
    """Go on filling, beginning with what was missed."""

    route = Route("POST", f"{IMPUTATION}/resume", role="trainer")


class RetryFailures(OnImputation):
    """Try the documents that failed once more."""

    route = Route("POST", f"{IMPUTATION}/failures/retry", role="writer")


class ListFailures(OnImputation):
    """Documents that could not be filled, with the reason."""

    route = Route("GET", f"{IMPUTATION}/failures")
    limit: Limit = 100


class ListCorrections(OnImputation):
    """Filled values that people changed or confirmed, and that are theirs since; newest first."""

    route = Route("GET", f"{IMPUTATION}/corrections")
    limit: Limit = 100


class ListVersions(OnImputation):
    """The versions of an imputation, newest first."""

    route = Route("GET", f"{IMPUTATION}/versions")
    limit: Limit = 100


class ShowHistory(OnImputation):
    """Which version was live when, and who made it so; newest first."""

    route = Route("GET", f"{IMPUTATION}/history")
    limit: Limit = 100


class CountStates(OnImputation):
    """The number of documents in each state."""

    route = Route("GET", f"{IMPUTATION}/counts", takes_long=True)


class ListStates(OnImputation):
    """A page of the documents in one state; `after` of one page begins the next."""

    route = Route("POST", f"{IMPUTATION}/documents/query")
    state: str
    after: Document | None = None
    limit: Limit = 100
