"""What lies under a value of ours, and what was taken from above it, so that it can come back.

A version that fills a blank leaves no trace but the value's provenance: nothing is written twice.
Only where a version writes over the value of another one, and where a value is taken back, is the
value kept here, as a layer. A layer knows which one lies upon it (`under`), by the hash of that
one's provenance, so that layers which a person has cut off from the present value are told by
themselves. A layer that was taken back is `withdrawn`: it counts as if it had never been written.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.database import Database

from superduper.imputations.decide import RAW
from superduper.imputations.failures import key_of
from superduper.imputations.provenance import input_hash, value_hash
from superduper.store.by_id import find_by_ids

NAME = "superduper.layers"
BATCH = 500


@dataclass(frozen=True)
class Layer:
    """A value that an imputation wrote into a field, with its provenance."""

    document_id: Any
    path: str
    value: Any
    record: Mapping[str, Any]
    under: str | None = None
    withdrawn: bool = False

    @property
    def id(self) -> str:
        """What names it among the layers of its field."""
        return value_hash(self.record)

    @property
    def place(self) -> tuple[bytes, str]:
        """The field of the document that it belongs to."""
        return key_of(self.document_id), self.path


Pile = Sequence[Layer]


class Layers:
    """The layers of one imputation."""

    def __init__(self, database: Database[Any], imputation_id: str) -> None:
        self.imputation_id = imputation_id
        # Values go back as the very bytes that they were.
        self.records: Collection[Any] = database[NAME].with_options(RAW)
        self._some = False

    def keep(self, layers: Iterable[Layer]) -> None:
        """Keep layers, or change what is known of them; before the document is changed."""
        updates = [
            UpdateOne(
                # By a name of its own: the embedded store finds it at once, however many there are.
                {"_id": input_hash([self.imputation_id, layer.document_id, layer.path, layer.id])},
                {
                    "$set": {
                        "imputation": self.imputation_id,
                        "path": layer.path,
                        "document": layer.document_id,
                        "value": layer.value,
                        "record": layer.record,
                        "under": layer.under,
                        "withdrawn": layer.withdrawn,
                    }
                },
                upsert=True,
            )
            for layer in layers
        ]
        if updates:
            self.records.bulk_write(updates, ordered=False)

    def withdraw(self, version: int, withdrawn: bool = True) -> None:
        """Mark the layers of a version, wherever they lie."""
        self.records.update_many(self._by(version), {"$set": {"withdrawn": withdrawn}})

    def of(self, document_ids: Sequence[Any]) -> dict[tuple[bytes, str], list[Layer]]:
        """The layers of these documents, by the field they belong to."""
        found: dict[tuple[bytes, str], list[Layer]] = {}
        if not self._any():
            return found
        for each in self.records.find(self._of(document_ids)):
            layer = _layer(each)
            found.setdefault(layer.place, []).append(layer)
        return found

    def _any(self) -> bool:
        """Whether there are layers at all, as is known once there have been."""
        # The embedded store collects all that there are to answer with the first, so never again.
        if not self._some:
            found = self.records.find_one({"imputation": self.imputation_id}, {"_id": 1})
            self._some = found is not None
        return self._some

    def withdrawn(self, version: int) -> Iterator[list[Any]]:
        """The ids of documents with withdrawn layers of a version, in batches."""
        wanted = {**self._by(version), "withdrawn": True}
        found = self.records.find(wanted, {"document": 1}).sort("_id", 1)
        while batch := [each["document"] for each in itertools.islice(found, BATCH)]:
            yield list({key_of(each): each for each in batch}.values())

    def forget_deleted(self, collection: Collection[Any]) -> None:
        """Drop the layers of documents that are no longer in the collection."""
        found = self.records.find({"imputation": self.imputation_id}, {"document": 1})
        while batch := [each["document"] for each in itertools.islice(found, BATCH)]:
            there = {key_of(each["_id"]) for each in find_by_ids(collection, batch, {"_id": 1})}
            gone = [each for each in batch if key_of(each) not in there]
            if gone:
                self.records.delete_many(self._of(gone))

    def _of(self, document_ids: Sequence[Any]) -> dict[str, Any]:
        return {"imputation": self.imputation_id, "document": {"$in": list(document_ids)}}

    def _by(self, version: int) -> dict[str, Any]:
        return {"imputation": self.imputation_id, "record.version": version}


def _layer(found: Mapping[str, Any]) -> Layer:
    return Layer(
        found["document"],
        found["path"],
        found["value"],
        found["record"],
        found["under"],
        found["withdrawn"],
    )


def piles(layers: Iterable[Layer]) -> list[Pile]:
    """Layers of one field sorted into piles, the uppermost first; the latest pile first."""
    by_upper: dict[str | None, list[Layer]] = {}
    ids = set[str]()
    for layer in layers:
        by_upper.setdefault(layer.under, []).append(layer)
        ids.add(layer.id)
    tops = [each for upper, found in by_upper.items() if upper not in ids for each in found]
    made: list[Pile] = []
    for top in sorted(tops, key=lambda each: -int(each.record.get("at", 0))):
        pile = [top]
        while below := by_upper.get(pile[-1].id):
            pile.append(below[0])
        made.append(pile)
    return made


def uppermost(pile: Iterable[Layer], inputs_hash: str | None) -> Layer | None:
    """The layer that should show: not withdrawn, and computed from what is there now."""
    for layer in pile:
        if not layer.withdrawn:
            return layer if layer.record.get("input") == inputs_hash else None
    return None


def prepare(database: Database[Any]) -> None:
    """Make the indexes by which layers are found: by document, and by version."""
    database[NAME].create_index([("imputation", 1), ("document", 1)])
    database[NAME].create_index([("imputation", 1), ("record.version", 1)])
