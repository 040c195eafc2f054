"""What models are given of documents that are there, read in batches that fit into memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection

from superduper.fields import paths
from superduper.imputations.decide import RAW
from superduper.imputations.failures import key_of
from superduper.imputations.provenance import BASE, as_one_value, input_values

BATCH_DOCUMENTS = 256
BATCH_BYTES = 16 << 20

Batch = list[RawBSONDocument]
Outcome = Mapping[str, Any]
Predict = Callable[[Sequence[Any]], Sequence[Outcome]]


@dataclass(frozen=True)
class Inputs:
    """The fields of a document that a model reads; `hidden` are left out of a whole document."""

    paths: tuple[str, ...]
    hidden: tuple[str, ...] = ()

    def missing(self, document: Mapping[str, Any]) -> list[str]:
        """Those that a document does not have."""
        return [path for path in self.paths if path != BASE and not paths.has(document, path)]

    def value(self, document: Mapping[str, Any]) -> Any:
        """What the model is given for a document that has them all."""
        values = input_values(document, self.paths, self.hidden)
        return None if values is None else as_one_value(values, self.paths)

    def outcomes(self, batch: Batch, predict: Predict) -> list[tuple[Any, Outcome]]:
        """The `_id` of each document with its outcome; without the fields there is an error."""
        missing = [self.missing(document) for document in batch]
        values = [self.value(each) for each, lacks in zip(batch, missing, strict=True) if not lacks]
        made = iter(predict(values))
        return [
            (_id_of(each), {"error": {"message": f"it has no {', '.join(lacks)}"}})
            if lacks
            else (_id_of(each), next(made))
            for each, lacks in zip(batch, missing, strict=True)
        ]

    @property
    def projection(self) -> dict[str, int] | None:
        """What has to be read of a document; None for all of it."""
        return None if BASE in self.paths else paths.projection(set(self.paths))


def outside_of(outcome: Outcome) -> dict[str, Any]:
    """How far the input is from what the version knows, and how far it may be; if it is too far."""
    found = outcome.get("out_of_domain")
    return {"out_of_domain": dict(found)} if found else {}


def _id_of(document: RawBSONDocument) -> Any:
    id = document["_id"]
    return bson.decode(id.raw) if isinstance(id, RawBSONDocument) else id


def matching(
    collection: Collection[Any],
    inputs: Inputs,
    filter: Mapping[str, Any],
    *,
    limit: int = 0,
    after: Sequence[Any] = (),
) -> Iterator[Batch]:
    """The documents that match, in the order of `_id`, in batches; after one `_id`, if given.

    A limit of 0 is none.
    """
    cursor = collection.with_options(RAW).find(
        filter, inputs.projection, limit=limit, batch_size=BATCH_DOCUMENTS
    )
    cursor = cursor.sort([("_id", 1)]).hint([("_id", 1)])
    if after:
        cursor = cursor.min([("_id", after[0])])
    with cursor:
        rest = (each for each in cursor if not after or key_of(each["_id"]) != key_of(after[0]))
        yield from batches(rest)


def batches(documents: Iterable[RawBSONDocument]) -> Iterator[Batch]:
    """Documents in parts that fit into memory side by side."""
    part: Batch = []
    size = 0
    for document in documents:
        if part and (len(part) == BATCH_DOCUMENTS or size + len(document.raw) > BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append(document)
        size += len(document.raw)
    if part:
        yield part
