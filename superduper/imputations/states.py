"""Where each document stands with an imputation: in exactly one state, told by one definition.

- `given`: every field is there, and none of them is ours: a person's values;
- `filled`: every field is there, some of them ours, and computed from what is there now;
- `stale`: as before, but an input has changed since, or is gone, or is stale itself;

and where a field is missing:

- `pending`: to be filled; also while a source that it waits for is stale;
- `withheld`: the model was not sure enough of this input;
- `no_value`: the model ran, and its answer was that there is none (None);
- `out_of_domain`: this input is unlike those that the model was trained on;
- `withdrawn`: our value was taken back, by a person or because its input changed;
- `failed`: the last try ended with an error;
- `without_input`: nothing to predict it from, or left out by the imputation's filter.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from superduper.errors import InvalidInput
from superduper.fields import paths
from superduper.imputations.decide import RAW
from superduper.imputations.failures import (
    OF_OUTCOME,
    TAKEN_BACK,
    TURNED_AWAY,
    Case,
    Failures,
    key_of,
    stands,
)
from superduper.imputations.graph import Graph, inputs_of, own_fills
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.inputs import outside_of
from superduper.imputations.provenance import BASE, as_one_value, input_hash, input_values
from superduper.store.by_id import find_by_ids

STATES = (
    *("given", "filled", "stale", "pending", "withheld", "no_value", "out_of_domain"),
    *("withdrawn", "failed", "without_input"),
)
WITH_VALUE = ("given", "filled", "stale")
BATCH = 500
#: How many documents one request for a page reads at most; a page may end before it is full.
PAGE_READS = 20_000


def selection(record: ImputationRecord) -> dict[str, Any]:
    """The filter for documents that have every input and that the imputation's filter admits."""
    there: list[dict[str, Any]] = [
        {path: {"$exists": True}} for path in record.input_paths if path != BASE
    ]
    if record.spec.get("filter"):
        there.append(dict(record.spec["filter"]))
    return {"$and": there} if there else {}


def _missing(record: ImputationRecord) -> dict[str, Any]:
    return {"$or": [{path: {"$exists": False}} for path in record.write_paths]}


def _of_states(record: ImputationRecord, state: str) -> dict[str, Any]:
    """A filter that lets through at least the documents in a state."""
    if state not in WITH_VALUE:
        # A path that leads through an array is there for a filter, and not for us.
        return {} if any("." in path for path in record.write_paths) else _missing(record)
    there: list[dict[str, Any]] = [{path: {"$exists": True}} for path in record.write_paths]
    if state != "given":
        ours = [{f"_fill.{path}.imputation": record.name} for path in record.write_paths]
        there.append({"$or": ours})
    return {"$and": there}


@dataclass(frozen=True)
class Standing:
    """A document's state, with what is known of why it has no value."""

    document_id: Any
    state: str
    failure: Mapping[str, Any] | None = None

    def shown(self) -> dict[str, Any]:
        """A row for users."""
        known = self.failure or {}
        fields = (*OF_OUTCOME, "error", "attempts", "version")
        return {
            "document": self.document_id,
            "state": self.state,
            **{name: known[name] for name in fields if known.get(name) is not None},
        }


class States:
    """Tells the states of documents for one imputation, as it and its sources are now."""

    def __init__(self, database: Database[Any], record: ImputationRecord) -> None:
        self.record = record
        self.graph = Graph(Imputations(database).find(record.collection))
        self.failures = Failures(database, record.id)
        self.collection = database[record.collection].with_options(RAW)

    def of(self, documents: Sequence[RawBSONDocument]) -> list[Standing]:
        """The state of each document, in order."""
        blank = [each["_id"] for each in documents if self._is_blank(each)]
        known = self.failures.known(blank) if blank else {}
        admitted = self._admitted(blank)
        return [self._standing(document, known, admitted) for document in documents]

    def _is_blank(self, document: Mapping[str, Any]) -> bool:
        return not all(paths.has(document, path) for path in self.record.write_paths)

    def _admitted(self, blank: Sequence[Any]) -> set[bytes] | None:
        """Those that pass the imputation's filter; None if all do."""
        if not self.record.spec.get("filter") or not blank:
            return None
        found = find_by_ids(self.collection, blank, {"_id": 1}, self.record.spec["filter"])
        return {key_of(each["_id"]) for each in found}

    def _standing(
        self,
        document: RawBSONDocument,
        known: Mapping[bytes, dict[str, Any]],
        admitted: set[bytes] | None,
    ) -> Standing:
        document_id = document["_id"]
        if not self._is_blank(document):
            if not any(own_fills(self.record, document)):
                return Standing(document_id, "given")
            fresh = self.graph.is_fresh(self.record, document)
            return Standing(document_id, "filled" if fresh else "stale")
        key = key_of(document_id)
        inputs = inputs_of(self.record, document)
        if inputs is None or (admitted is not None and key not in admitted):
            return Standing(document_id, "without_input")
        failure = known.get(key)
        case = Case(document_id, input_hash(inputs), self.record.active or 0)
        if failure is None or not stands(failure, case):
            return Standing(document_id, "pending")
        return Standing(document_id, _state_of(failure), failure)

    def walk(self, wanted: Mapping[str, Any], after: Sequence[Any] = ()) -> Iterator[Standing]:
        """The states of the documents that match, in the order of `_id`; after one, if given."""
        cursor = self.collection.find(
            wanted, self.graph.projection(self.record), batch_size=BATCH
        ).hint([("_id", 1)])
        if after:
            cursor = cursor.min([("_id", after[0])])
        batch: list[RawBSONDocument] = []
        with cursor:
            for document in cursor:
                if after and key_of(document["_id"]) == key_of(after[0]):
                    continue
                batch.append(document)
                if len(batch) >= BATCH:
                    yield from self.of(batch)
                    batch = []
        yield from self.of(batch)

    def page(self, state: str, after: Sequence[Any], limit: int) -> dict[str, Any]:
        """Rows of documents in a state, and the `_id` after which to go on, if there is more."""
        if state not in STATES:
            raise InvalidInput(f"there is no state {state[:40]!r}; there are {', '.join(STATES)}")
        rows: list[dict[str, Any]] = []
        for read, standing in enumerate(self.walk(_of_states(self.record, state), after), 1):
            if standing.state == state:
                rows.append(standing.shown())
            if len(rows) >= limit or read >= PAGE_READS:
                return {"documents": rows, "after": {"_id": standing.document_id}}
        return {"documents": rows, "after": None}


def _state_of(failure: Mapping[str, Any]) -> str:
    """The state of a blank document whose failure stands."""
    state = failure["state"]
    if state in TAKEN_BACK:
        return "withdrawn"
    if state in TURNED_AWAY:
        return str(state)
    tried = failure.get("error") is not None and failure.get("attempts")
    return "failed" if state == "dead" or tried else "pending"


def preview(
    database: Database[Any],
    record: ImputationRecord,
    n: int,
    predict: Callable[[list[Any]], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Outcomes for up to `n` documents that lack the field; nothing is written."""
    wanted = {"$and": [_missing(record), selection(record)]}
    documents = list(database[record.collection].find(wanted).sort("_id", 1).limit(n))
    values = [input_values(each, record.input_paths, record.hidden_paths) for each in documents]
    outcomes = predict([as_one_value(value or [], record.input_paths) for value in values])
    return [
        {
            "document": document["_id"],
            "value": outcome.get("value"),
            "confidence": outcome.get("confidence"),
            "error": (outcome.get("error") or {}).get("message"),
            **outside_of(outcome),
        }
        for document, outcome in zip(documents, outcomes, strict=True)
    ]
