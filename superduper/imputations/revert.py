"""Take back what a version filled, where its value still stands."""

from typing import Any

from pymongo import UpdateOne
from pymongo.database import Database

from superduper.fields import paths
from superduper.imputations.decide import RAW
from superduper.imputations.fill import Stale, removal_of, write
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import FILL, fill_of, fill_path, is_ours

BATCH = 500


def revert_version(database: Database[Any], record: ImputationRecord, version: int) -> int:
    """Remove the values that a version filled and that nobody changed since; answers how many.

    Each removal is one conditional update, so a value that a person writes at the same moment
    stays. Runs in bounded memory and may be run again after an interruption.
    """
    collection = database[record.collection].with_options(RAW)
    reverted = 0
    for path in record.write_paths:
        place = fill_path(path)
        mine = {f"{place}.imputation": record.name, f"{place}.version": version}
        shown = {path.split(".")[0]: 1, FILL: 1}
        batch: list[UpdateOne] = []
        for document in collection.find(mine, shown, batch_size=BATCH):
            fill = fill_of(document, path)
            if fill is not None and is_ours(document, path):
                stale = Stale(paths.get(document, path), fill)
                batch.append(removal_of(document["_id"], path, stale))
            if len(batch) == BATCH:
                reverted += write(collection, batch).modified
                batch = []
        reverted += write(collection, batch).modified
    return reverted
