"""The documents an imputation may learn from, read once, in bounded memory."""

from collections.abc import Generator, Iterator
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo.database import Database

from superduper.fields import paths
from superduper.imputations.decide import RAW
from superduper.imputations.fitting.folds import FIELD
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import BASE, FILL, input_values, is_ours
from superduper.imputations.states import selection

BATCH_DOCUMENTS = 1_000
BATCH_BYTES = 8 << 20


def documents(database: Database[Any], record: ImputationRecord) -> Generator[RawBSONDocument]:
    """The documents an imputation may learn from, in order of `_id`.

    Those that have every input, pass the filter, and have every target with a value that is not
    null and that a person gave: a value of ours never becomes a label.
    """
    labelled = [{path: {"$exists": True, "$ne": None}} for path in record.target_paths]
    wanted = {"$and": [selection(record), *(each for each in labelled if BASE not in each)]}
    collection = database.get_collection(record.collection, codec_options=RAW)
    found = collection.find(wanted, _projection(record), batch_size=BATCH_DOCUMENTS)
    for document in found.sort("_id", 1):
        # A path into an array matches the filter and is still no field: see `fields.paths`.
        inputs = input_values(document, record.input_paths)
        targets = input_values(document, record.target_paths)
        if inputs is None or targets is None:
            continue
        if not any(is_ours(document, path) for path in record.target_paths):
            yield document


def _projection(record: ImputationRecord) -> dict[str, int] | None:
    read = {*record.input_paths, *record.target_paths, FIELD, FILL}
    if BASE in read:
        return None
    return paths.projection(read)


def batches(found: Iterator[RawBSONDocument]) -> Iterator[list[RawBSONDocument]]:
    """Documents in batches of bounded number and size."""
    batch: list[RawBSONDocument] = []
    size = 0
    for document in found:
        batch.append(document)
        size += len(document.raw)
        if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
