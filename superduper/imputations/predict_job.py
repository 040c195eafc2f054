"""Predictions as a job: of inputs that were sent, or of the documents that match a filter.

One version answers from the first row to the last: the one that was live when the job was put. A
job that was killed goes on after the last rows that it kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from pymongo.database import Database

from superduper.errors import ChildDied, TimedOut
from superduper.imputations.hosting import open_hosts
from superduper.imputations.inputs import Inputs, Outcome, Predict, matching, outside_of
from superduper.imputations.kept_predictions import KeptPredictions, Row
from superduper.jobs.queue import RunningJob
from superduper.serving.hosts import Hosts
from superduper.store.component import Component
from superduper.store.registry import Registry

PREDICT = "predict"
PART_SECONDS = 600.0


@dataclass(frozen=True)
class PredictContext:
    """What a job of predictions works with."""

    database: Database[Any]
    registry: Registry

    @property
    def kept(self) -> KeptPredictions:
        """Its inputs and outputs."""
        return KeptPredictions(self.database)


@dataclass(frozen=True)
class Order:
    """The arguments of such a job."""

    collection: str
    model: str
    model_version: int
    version: int | None
    kept: str
    rows: int | None = None
    filter: Mapping[str, Any] | None = None
    inputs: Mapping[str, Any] | None = None

    def to_args(self) -> dict[str, Any]:
        """What goes into the job's document."""
        return dict(vars(self))


def predict_later(job: RunningJob, work: PredictContext) -> dict[str, Any]:
    """Run the job; its result counts the rows, and those that failed."""
    order, kept = Order(**job.args), work.kept
    component = work.registry.get(order.collection, "model", order.model, order.model_version)
    with closing(open_hosts(work.registry, max_hosts=1)) as hosts:
        predict = partial(outcomes_of, hosts, component)
        for first, rows in _rows(work, order, predict):
            kept.keep_outputs(order.kept, first, rows)
            job.progress({"done": first + len(rows), "total": order.rows})
            job.advanced()
    return {**kept.totals(order.kept), "version": order.version}


def _rows(work: PredictContext, order: Order, predict: Predict) -> Iterator[tuple[int, list[Row]]]:
    """The number of the first row and the rows, part by part; the next when one has been kept."""
    if order.inputs is None:
        for first, values in work.kept.inputs(order.kept):
            yield first, [row_of(outcome) for outcome in predict(values)]
            work.kept.drop_inputs(order.kept, first)
        return
    inputs = Inputs(tuple(order.inputs["paths"]), tuple(order.inputs["hidden"]))
    last, first = work.kept.last(order.kept)
    after = [] if last is None else [last["document"]]
    collection = work.database[order.collection]
    for batch in matching(collection, inputs, order.filter or {}, after=after):
        found = inputs.outcomes(batch, predict)
        yield first, [{"document": id, **row_of(outcome)} for id, outcome in found]
        first += len(batch)


def outcomes_of(hosts: Hosts, component: Component, values: Sequence[Any]) -> list[Outcome]:
    """An outcome for each value; one that ends the model's process, or holds it, fails alone."""
    try:
        return list(hosts.predict(component, values, PART_SECONDS)) if values else []
    except (ChildDied, TimedOut) as error:
        if len(values) == 1:
            return [{"error": {"message": error.message}}]
    return [outcome for value in values for outcome in outcomes_of(hosts, component, [value])]


def row_of(outcome: Mapping[str, Any]) -> Row:
    """What is told of an outcome: value, confidence and domain, or the error's message."""
    if outcome.get("error"):
        return {"error": outcome["error"]["message"]}
    told = {name: outcome[name] for name in ("value", "confidence") if name in outcome}
    return {**told, **outside_of(outcome)}
