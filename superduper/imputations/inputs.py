"""What models are given of documents that are there, read in batches that fit into memory."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection

from superduper.fields import paths
from superduper.imputations.decide import RAW
from superduper.imputations.provenance import BASE, as_one_value, input_values

BATCH_DOCUMENTS = 256
BATCH_BYTES = 16 << 20

Batch = list[RawBSONDocument]


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

    @property
    def projection(self) -> dict[str, int] | None:
        """What has to be read of a document; None for all of it."""
        return None if BASE in self.paths else paths.projection(set(self.paths))


def matching(
    collection: Collection[Any],
    inputs: Inputs,
    filter: Mapping[str, Any],
    limit: int = 0,
) -> Iterator[Batch]:
    """The documents that match, in the order of `_id`, in batches; a limit of 0 is none."""
    cursor = collection.with_options(RAW).find(
        filter, inputs.projection, sort=[("_id", 1)], limit=limit, batch_size=BATCH_DOCUMENTS
    )
    with cursor:
        yield from batches(cursor)


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
