"""Commands that ask a model for outputs."""

from typing import Any

from superduper import commands
from superduper.errors import UserCodeError
from superduper.handlers.context import Context
from superduper.handlers.imputations import live_component
from superduper.store.registry import Component


def predict(context: Context, command: commands.Predict) -> dict[str, Any]:
    """Outputs of a registered model."""
    return _ask(context, *find(context, command), command.inputs)


def predict_imputation(context: Context, command: commands.PredictImputation) -> dict[str, Any]:
    """Outputs of an imputation's live version."""
    return _ask(context, *find(context, command), command.inputs)


def find(
    context: Context, command: commands.Predict | commands.PredictImputation
) -> tuple[Component, int | None]:
    """The model version that answers, and the version that is told: an imputation has its own."""
    if isinstance(command, commands.Predict):
        component = context.registry.get(command.collection, "model", command.name, command.version)
        return component, component.version
    record = context.imputations.get(command.collection, command.name)
    return live_component(context, record), record.active


def _ask(
    context: Context, component: Component, version: int | None, inputs: list[Any]
) -> dict[str, Any]:
    outcomes = context.hosts.predict(component, inputs) if inputs else []
    return answer(component, version, outcomes)


def answer(
    component: Component, version: int | None, outcomes: list[dict[str, Any]]
) -> dict[str, Any]:
    """One output for each outcome and in order; an input that failed has None and an error.

    Raises UserCodeError if every input failed.
    """
    errors = {
        str(index): outcome["error"]["message"]
        for index, outcome in enumerate(outcomes)
        if outcome.get("error")
    }
    if outcomes and len(errors) == len(outcomes):
        raise UserCodeError(f"model {component.name!r} failed: {errors['0']}")
    told: dict[str, Any] = {
        "outputs": [outcome.get("value") for outcome in outcomes],
        "version": version,
    }
    confidences = [outcome.get("confidence") for outcome in outcomes]
    if any(confidence is not None for confidence in confidences):
        told["confidence"] = confidences
    if errors:
        told["errors"] = errors
    return told
