"""The whole story of one value: what made it, of what, on whose word, and whether it comes again.

A model's numbers depend in their last bits on how many rows it was given at once, and on the row.
So the value is computed alone first and then in batches of copies of its input, until the very
bits come out; which batch gave them is told.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from superduper.errors import InvalidInput, NotFound, SuperduperError
from superduper.fields import paths
from superduper.imputations.decide import RAW, split_outputs
from superduper.imputations.graph import inputs_of
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.provenance import as_one_value, fill_of, input_hash, value_hash
from superduper.imputations.states import States
from superduper.store.component import Component
from superduper.store.registry import Registry
from superduper.training.runs import Runs

Story = dict[str, Any]

# Powers of two give nearly all; the others are batches that were the last of a walk.
_POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_OTHERS = tuple(size for size in range(3, 256) if size not in _POWERS)
# For one prediction, and for all of them.
SECONDS = 60.0

_OF_RUN = ("seed", "settings", "data", "metrics", "device", "started_at", "finished_at")
_WHY = {
    "given": "a person's value: it is not one that an imputation wrote",
    "stale": "an input has changed since, or is gone, or is stale itself",
    "pending": "it is to be filled: it was not tried with this input and version yet",
    "withheld": "the model was not sure enough",
    "no_value": "the model ran, and its answer was that there is no value",
    "out_of_domain": "the input is unlike those that the model was trained on: see its distance",
    "withdrawn": "the value was taken back: by a person, or because its input changed",
    "failed": "the last try ended with an error",
    "without_input": "there is nothing to predict it from, or the filter leaves it out",
}


class Predicts(Protocol):
    """Outcomes of a model for stored values, as they are made for fills."""

    def __call__(
        self, component: Any, values: Sequence[Any], timeout: float | None = None
    ) -> list[dict[str, Any]]: ...


class Explainer:
    """Tells the stories of values of one database."""

    def __init__(self, database: Database[Any], registry: Registry, predict: Predicts) -> None:
        self.database = database
        self.imputations = Imputations(database)
        self.registry = registry
        self.runs = Runs(database)
        self._predict = predict

    def explain(self, collection: str, document_id: Any, field: str) -> Story:
        """The story of a document's field, whether it has a value or not.

        Raises NotFound if there is no such document, or if no imputation fills the field.
        """
        wanted = {"_id": {"$in": [document_id]}}
        document = self.database[collection].with_options(RAW).find_one(wanted)
        if document is None:
            raise NotFound(f"collection {collection!r} has no document {document_id!r:.80}")
        record = self._fills(collection, field, fill_of(document, field) or {})
        [standing] = States(self.database, record).of([document])
        story = {
            **standing.shown(),
            "field": field,
            "imputation": record.name,
            "why": _WHY.get(standing.state),
        }
        if standing.state in ("filled", "stale"):
            return {**story, **self._origin(record, document, field)}
        return story

    def _fills(self, collection: str, field: str, fill: Mapping[str, Any]) -> ImputationRecord:
        """The imputation that wrote the value, else one that would."""
        records = self.imputations.find(collection)
        fitting = [record for record in records if field in record.write_paths]
        if fitting:
            wrote = fill.get("imputation")
            return max(fitting, key=lambda each: (each.name == wrote, each.watched))
        if fill:
            raise NotFound(
                f"the value of {field[:80]!r} was filled by version {fill['version']} of the "
                f"imputation {fill['imputation'][:80]!r}, which was deleted since"
            )
        there = sorted(path for record in records for path in record.write_paths)
        raise NotFound(
            f"no imputation of {collection!r} fills {field[:80]!r}; "
            + (f"they fill {', '.join(there)}" if there else "there is none")
        )

    def _origin(self, record: ImputationRecord, document: RawBSONDocument, field: str) -> Story:
        fill = fill_of(document, field)
        if fill is None:  # of several fields this one is a person's
            return {"state": "given", "why": _WHY["given"]}
        inputs = inputs_of(record, document)
        same = inputs is not None and input_hash(inputs) == fill["input"]
        known = {key: fill[key] for key in ("version", "at", "confidence") if key in fill}
        run = self.runs.of_version(record.id, fill["version"]) or {}
        story: Story = {
            **known,
            "value": paths.get(document, field),
            "input": {"fields": list(record.input_paths), "hash": fill["input"], "same": same},
            "run": {"id": run.get("_id"), **{key: run.get(key) for key in _OF_RUN}},
            "promoted": [e for e in record.history if e["version"] == fill["version"]],
        }
        try:
            component = self._component(record, run)
        except (NotFound, InvalidInput) as error:
            return {**story, "model": None, "derived": _not_derived(error.message)}
        story["model"] = _told(component)
        if inputs is None or not same:
            return {**story, "derived": _not_derived("its input is not there any more")}
        given = as_one_value(inputs, record.input_paths)
        return {**story, "derived": self._derive(record, component, given, field, fill["value"])}

    def _component(self, record: ImputationRecord, run: Mapping[str, Any]) -> Component:
        if run.get("model_version") is None:
            raise NotFound("the run that made this version is not there any more")
        version = int(run["model_version"])
        return self.registry.get(record.collection, "model", run["settings"]["model"], version)

    def _derive(
        self, record: ImputationRecord, component: Component, given: Any, field: str, wanted: str
    ) -> Story:
        """Have the stored version compute the value again, until it is the same to the bit."""
        seen: dict[str, Any] = {}
        end = time.monotonic() + SECONDS
        for size in (*_POWERS, *_OTHERS):
            if seen and time.monotonic() > end:
                return _not_derived(f"it did not come again within {SECONDS:g} s")
            if size == _OTHERS[0] and len(seen) == 1:
                break  # how many rows there are makes no difference to this model
            try:
                outcomes = self._predict(component, [given] * size, SECONDS)
                outputs = [_output(outcome, record, field) for outcome in outcomes]
            except (SuperduperError, ValueError) as error:
                return _not_derived(str(error))
            seen |= {value_hash(output): output for output in outputs}
            if wanted in seen:
                return {"identical": True, "batch": size}
        return {"identical": False, "value": next(iter(seen.values()))}


def _output(outcome: Mapping[str, Any], record: ImputationRecord, field: str) -> Any:
    if outcome.get("error"):
        raise InvalidInput(f"the model failed: {outcome['error'].get('message')}")
    return split_outputs(outcome.get("value"), record.write_paths)[field]


def _not_derived(why: str) -> Story:
    return {"identical": None, "why": why}


def _told(component: Component) -> Story:
    return {
        "name": component.name,
        "version": component.version,
        "artifact": component.artifact,
        "weights": component.weights,
        "domain": component.domain,
        "source": component.details.get("source"),
        "registered_by": component.created_by,
        "registered_at": component.created_at,
    }
