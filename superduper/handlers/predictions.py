"""Commands that ask a model for outputs."""

from typing import Any

from superduper import commands
from superduper.errors import UserCodeError
from superduper.handlers.context import Context
from superduper.handlers.imputations import live_component


def predict(context: Context, command: commands.Predict) -> dict[str, Any]:
    """Outputs of a registered model."""
    component = context.registry.get(command.collection, "model", command.name, command.version)
    return _answer(context, component, command.inputs, component.version)


def predict_imputation(context: Context, command: commands.PredictImputation) -> dict[str, Any]:
    """Outputs of an imputation's live version."""
    record = context.imputations.get(command.collection, command.name)
    component = live_component(context, record)
    return _answer(context, component, command.inputs, record.active)


def _answer(
    context: Context, component: Any, inputs: list[Any], version: int | None
) -> dict[str, Any]:
    """One output for each input and in order; an input that failed has None and an error.

    Raises UserCodeError if every input failed.
    """
    outcomes = context.hosts.predict(component, inputs) if inputs else []
    errors = {
        str(index): outcome["error"]["message"]
        for index, outcome in enumerate(outcomes)
        if outcome.get("error")
    }
    if outcomes and len(errors) == len(outcomes):
        raise UserCodeError(f"model {component.name!r} failed: {errors['0']}")
    answer: dict[str, Any] = {
        "outputs": [outcome.get("value") for outcome in outcomes],
        "version": version,
    }
    confidences = [outcome.get("confidence") for outcome in outcomes]
    if any(confidence is not None for confidence in confidences):
        answer["confidence"] = confidences
    if errors:
        answer["errors"] = errors
    return answer
