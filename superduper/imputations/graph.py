"""Which field is computed from which, and whether a value still belongs to what it came from.

Nothing is marked when an input changes: a value of ours is stale from that very moment, because its
provenance holds the hash of the inputs. So is all that was computed from it, however far away.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from superduper.fields import paths
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import BASE, FILL, fill_of, input_hash, input_values, is_ours


def inputs_of(record: ImputationRecord, document: Mapping[str, Any]) -> list[Any] | None:
    """What a model reads of a document, one value for each input; None where a field is missing."""
    return input_values(document, record.input_paths, exclude=sorted(record.hidden_paths))


def own_fills(
    record: ImputationRecord, document: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The fields that hold a value of this imputation's which nobody changed, with provenance."""
    for path in record.write_paths:
        fill = fill_of(document, path)
        if fill is not None and fill.get("imputation") == record.name and is_ours(document, path):
            yield path, fill


class Graph:
    """The imputations and watchers of one collection."""

    def __init__(self, records: Iterable[ImputationRecord]) -> None:
        self.records = tuple(records)

    def sources(self, record: ImputationRecord) -> tuple[ImputationRecord, ...]:
        """The imputations whose values this one reads."""
        return tuple(
            other
            for other in self.records
            if other.name != record.name and any(record.reads(path) for path in other.write_paths)
        )

    def upstream(self, record: ImputationRecord) -> tuple[ImputationRecord, ...]:
        """The imputation itself and all that its values are computed from, however far away."""
        found = {record.name: record}
        waiting = [record]
        while waiting:
            new = [each for each in self.sources(waiting.pop()) if each.name not in found]
            found |= {each.name: each for each in new}
            waiting += new
        return tuple(found.values())

    def is_fresh(self, record: ImputationRecord, document: Mapping[str, Any]) -> bool:
        """Whether what an imputation wrote in a document is not stale (true if it wrote nothing).

        Stale is a value whose inputs changed, or are gone, or are stale themselves.
        """
        fills = list(own_fills(record, document))
        if not fills:
            return True
        inputs = inputs_of(record, document)
        if inputs is None or any(fill["input"] != input_hash(inputs) for _, fill in fills):
            return False
        return self.has_fresh_inputs(record, document)

    def has_fresh_inputs(self, record: ImputationRecord, document: Mapping[str, Any]) -> bool:
        """Whether no input is a stale value of another imputation."""
        return all(self.is_fresh(source, document) for source in self.sources(record))

    def projection(self, record: ImputationRecord) -> dict[str, int] | None:
        """The fields by which freshness is told; None for all of them."""
        return projection_of(self.upstream(record))


def projection_of(records: Iterable[ImputationRecord]) -> dict[str, int] | None:
    """What is read of a document for these imputations; None for the whole of it."""
    read = {path for each in records for path in (*each.input_paths, *each.write_paths)} | {FILL}
    if BASE in read:
        return None
    return paths.projection(read)
