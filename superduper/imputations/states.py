"""Where each document stands with an imputation, and what it would be given."""

from collections.abc import Callable
from typing import Any

from pymongo.database import Database

from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import BASE, as_one_value, input_values


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


def count_states(database: Database[Any], record: ImputationRecord) -> dict[str, int]:
    """The number of documents in each state; they add up to the collection.

    `given`: a person's value; `filled`: ours; `pending`: to be filled; `withheld`: the model was
    not sure enough; `withdrawn`: taken back when its input changed (`on_input_change="clear"`);
    `failed`: see the failures; `without_input`: no value and nothing to predict
    it from, or left out by the imputation's filter.
    """
    collection = database[record.collection]
    first = record.write_paths[0]
    total = collection.count_documents({})
    filled = collection.count_documents(
        {first: {"$exists": True}, f"_fill.{first}.imputation": record.name}
    )
    missing = collection.count_documents(_missing(record))
    wanted = collection.count_documents({"$and": [_missing(record), selection(record)]})
    withheld, withdrawn, failed = (
        database["superduper.failures"].count_documents({"imputation": record.id, "state": state})
        for state in ("withheld", "cleared", {"$nin": ["withheld", "cleared"]})
    )
    return {
        "given": max(0, total - missing - filled),
        "filled": filled,
        "pending": max(0, wanted - withheld - withdrawn - failed),
        "withheld": withheld,
        "withdrawn": withdrawn,
        "failed": failed,
        "without_input": max(0, missing - wanted),
    }


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
        }
        for document, outcome in zip(documents, outcomes, strict=True)
    ]
