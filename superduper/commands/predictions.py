"""Commands that ask a model for outputs."""

from typing import Annotated, Any, Literal

from pydantic import Field

from superduper.command import (
    COLLECTION,
    Command,
    Document,
    Keys,
    Limit,
    Name,
    OnCollection,
    Route,
    Version,
)
from superduper.commands.imputations import IMPUTATION, OnImputation

MOST_INPUTS = 10_000
"""Of one prediction; more are for a job."""


class Predict(OnCollection):
    """Outputs of a registered model, one for each input and in order."""

    route = Route("POST", f"{COLLECTION}/models/{{name}}/predict")
    name: Name
    inputs: Annotated[list[Any], Field(max_length=MOST_INPUTS)]
    version: Version | None = None


class PredictImputation(OnImputation):
    """Outputs of an imputation's live version."""

    route = Route("POST", f"{IMPUTATION}/predict")
    inputs: Annotated[list[Any], Field(max_length=MOST_INPUTS)]


class OnEither(OnCollection):
    """A command about what predicts: a model or an imputation."""

    kind: Literal["model", "imputation"]
    name: Name


class OnPredictor(OnEither):
    """A command to what predicts; to its live version if none is told."""

    version: Version | None = None


_PREDICT = f"{COLLECTION}/{{kinds}}/{{name}}/predict"


class PredictDocuments(OnPredictor):
    """Outputs for documents that are there, by id or by filter; writes nothing.

    A model is told by `key` which field it reads, or which fields; an imputation knows. Either
    `ids`, answered in their order, or the first documents, by `_id`, that match `filter`.
    """

    route = Route("POST", f"{_PREDICT}/documents", takes_long=True)
    key: Keys | None = None
    ids: Annotated[list[Any], Field(max_length=1000)] | None = None
    filter: Document | None = None
    limit: Limit = 100


class StreamPrediction(OnPredictor):
    """One prediction piece by piece, as the model yields them."""

    route = Route("POST", f"{_PREDICT}/stream")
    input: Any


class PredictLater(OnPredictor):
    """Queue the predictions of many inputs, or of the documents that match a filter: a job.

    Either `inputs`, or a `filter` (of a model with `key`). What is live now answers them all.
    """

    route = Route("POST", f"{_PREDICT}/jobs", role="writer", status=202, takes_long=True)
    inputs: Annotated[list[Any], Field(max_length=100_000)] | None = None
    key: Keys | None = None
    filter: Document | None = None


class ListOutputs(Command):
    """Outputs of a job of predictions from row `first` on, as far as it has come.

    `next` begins the next page. A page that is empty is the last if the job's `state` is an end.
    """

    route = Route("GET", "/v1/jobs/{id}/outputs")
    id: Annotated[str, Field(max_length=64)]
    first: Annotated[int, Field(ge=0)] = 0


class ExplainPrediction(OnPredictor):
    """One prediction with what was in between: what the model was given, and what it gave back."""

    route = Route("POST", f"{_PREDICT}/explain", takes_long=True)
    input: Any


# Versions on trial -----------------------------------------------------------------------------


class Canary(Command):
    """A version that answers a share of the requests."""

    version: Version
    share: Annotated[float, Field(gt=0, le=1)]


class Shadow(Command):
    """A version that is asked too, for a share of the requests; its answers are only compared."""

    version: Version
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-6


class SetTraffic(OnEither):
    """Give other versions a share of what servers are asked; with neither, none any more."""

    route = Route(
        "PUT", f"{COLLECTION}/{{kinds}}/{{name}}/traffic", role="trainer", takes_long=True
    )
    canary: Canary | None = None
    shadow: Shadow | None = None


class ShowTraffic(OnEither):
    """Which versions answer what servers are asked, and how they have done so far."""

    route = Route("GET", f"{COLLECTION}/{{kinds}}/{{name}}/traffic")
