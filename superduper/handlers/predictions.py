"""Commands that ask a model for outputs."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from superduper import commands, settings
from superduper.command import build
from superduper.errors import InvalidInput, NotFound, UserCodeError
from superduper.handlers.context import Context
from superduper.handlers.imputations import live_component
from superduper.imputations.declare import as_paths
from superduper.imputations.failures import key_of
from superduper.imputations.inputs import Inputs, Outcome, matching, outside_of
from superduper.imputations.kept_predictions import KeptPredictions
from superduper.imputations.predict_job import PREDICT, Order
from superduper.store.component import Component

ASK_SECONDS = 30.0


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
    component: Component, version: int | None, outcomes: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """One output for each outcome and in order; an input that failed has None and an error.

    Those that are out of domain are told beside it, by their place: an imputation fills none such.

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
    outside = {str(index): each.get("out_of_domain") for index, each in enumerate(outcomes)}
    if any(outside.values()):
        told["out_of_domain"] = {index: dict(each) for index, each in outside.items() if each}
    return told


# About documents, and in detail ----------------------------------------------------------------


def component_of(context: Context, command: commands.OnPredictor) -> tuple[Component, int | None]:
    """The model version that answers, and the version that is told: an imputation has its own."""
    if command.kind == "model":
        component = context.registry.get(command.collection, "model", command.name, command.version)
        return component, component.version
    record = context.imputations.get(command.collection, command.name)
    if command.version is None:
        return live_component(context, record), record.active
    version = context.imputations.model_version(record, command.version)
    model = record.spec["model"]
    return context.registry.get(record.collection, "model", model, version), command.version


def inputs_of(
    context: Context, command: commands.PredictDocuments | commands.PredictLater
) -> Inputs:
    """Which fields of documents are given to what predicts.

    Raises InvalidInput if a model is not told, or an imputation told otherwise.
    """
    if command.kind == "model":
        if command.key is None:
            raise InvalidInput("key: name the field, or the fields, that the model reads")
        return Inputs(as_paths(command.key))
    if command.key is not None:
        raise InvalidInput("key: an imputation knows which fields it reads")
    record = context.imputations.get(command.collection, command.name)
    return Inputs(record.input_paths, record.hidden_paths)


def other_version(
    context: Context, command: commands.Predict | commands.PredictImputation, version: int
) -> tuple[Component, int | None]:
    """The model version behind another version of what is asked, and the version that is told."""
    kind = "model" if isinstance(command, commands.Predict) else "imputation"
    asked = build(
        commands.OnPredictor,
        collection=command.collection,
        kind=kind,
        name=command.name,
        version=version,
    )
    return component_of(context, asked)


def predict_documents(context: Context, command: commands.PredictDocuments) -> dict[str, Any]:
    """Outputs for documents by id or by filter; nothing is written."""
    if (command.ids is None) == (command.filter is None):
        raise InvalidInput("pass either ids or a filter")
    component, version = component_of(context, command)
    inputs = inputs_of(context, command)
    collection = context.database[command.collection]
    if command.ids is None:
        found = matching(collection, inputs, command.filter or {}, limit=command.limit)
    else:
        found = matching(collection, inputs, {"_id": {"$in": command.ids}})

    def predict(values: Sequence[Any]) -> Sequence[Outcome]:
        return context.hosts.predict(component, values) if values else []

    rows = [_row(*each) for batch in found for each in inputs.outcomes(batch, predict)]
    rows = rows if command.ids is None else _in_order(command.ids, rows)
    return {"documents": rows, "version": version}


def predict_later(context: Context, command: commands.PredictLater) -> dict[str, Any]:
    """Queue predictions; what is live now answers them all."""
    if (command.inputs is None) == (command.filter is None):
        raise InvalidInput("pass either inputs or a filter")
    component, version = component_of(context, command)
    kept = KeptPredictions(context.database)
    order = Order(
        collection=command.collection,
        model=component.name,
        model_version=component.version,
        version=version,
        kept=kept.keep_inputs(command.inputs or []),
        rows=None if command.inputs is None else len(command.inputs),
        filter=command.filter,
        inputs=None if command.filter is None else vars(inputs_of(context, command)),
    )
    return {"job": context.queue.put(PREDICT, order.to_args())}


def outputs(context: Context, command: commands.ListOutputs) -> dict[str, Any]:
    """Some of the rows of a job of predictions, as far as it has come."""
    job = context.queue.get(command.id)
    if job["kind"] != PREDICT:
        raise InvalidInput(f"job {command.id!r} is a {job['kind']}: only predictions have outputs")
    hours = settings.get_number("OUTPUTS_HOURS")
    if job["finished_at"] and job["finished_at"] + hours * 3_600_000 < context.now():
        raise NotFound(
            f"the outputs of job {command.id!r} were kept for {hours:g} hours and no more"
        )
    rows, after = KeptPredictions(context.database).outputs(job["args"]["kept"], command.first)
    return {"rows": rows, "next": after, "state": job["state"]}


def _row(document_id: Any, outcome: Outcome) -> dict[str, Any]:
    return {
        "document": document_id,
        "value": outcome.get("value"),
        "confidence": outcome.get("confidence"),
        "error": (outcome.get("error") or {}).get("message"),
        **outside_of(outcome),
    }


def _in_order(ids: list[Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = {_identity(row["document"]): row for row in rows}
    gone = {"error": {"message": "there is no document of this _id"}}
    return [found.get(_identity(id)) or _row(id, gone) for id in ids]


def _identity(document_id: Any) -> Any:
    """Something that is equal for what the database takes for the same `_id`: 1 and 1.0 are."""
    if isinstance(document_id, int | float) and not isinstance(document_id, bool):
        return document_id
    return key_of(document_id)


def stream(context: Context, command: commands.StreamPrediction) -> Iterator[dict[str, Any]]:
    """One prediction piece by piece, `{"piece": value}`, then `{"end": ...}`.

    Raises UserCodeError where the model fails.
    """
    component, version = component_of(context, command)
    count = 0
    with closing(context.hosts.pieces(component, command.input)) as outcomes:
        for outcome in outcomes:
            if outcome.get("error"):
                message = outcome["error"]["message"]
                raise UserCodeError(f"model {component.name!r} failed: {message}")
            count += 1
            yield {"piece": outcome["value"]}
    yield {"end": {"pieces": count, "version": version}}


def explain(context: Context, command: commands.ExplainPrediction) -> dict[str, Any]:
    """One prediction with what was in between."""
    component, version = component_of(context, command)
    told = context.hosts.ask(component, {"op": "explain", "value": command.input}, ASK_SECONDS)
    return {**told, "model": component.name, "version": version}
