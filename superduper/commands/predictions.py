"""Commands that ask a model for outputs."""

from typing import Annotated, Any

from pydantic import Field

from superduper.command import COLLECTION, Name, OnCollection, Route, Version
from superduper.commands.imputations import IMPUTATION, OnImputation


class Predict(OnCollection):
    """Outputs of a registered model, one for each input and in order."""

    route = Route("POST", f"{COLLECTION}/models/{{name}}/predict")
    name: Name
    inputs: Annotated[list[Any], Field(max_length=10_000)]
    version: Version | None = None


class PredictImputation(OnImputation):
    """Outputs of an imputation's live version."""

    route = Route("POST", f"{IMPUTATION}/predict")
    inputs: Annotated[list[Any], Field(max_length=10_000)]
