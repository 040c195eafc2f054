"""Which field is computed from which, and whether a value still belongs to what it came from.

Nothing is marked when an input changes: a value of ours is stale from that very moment, because its
provenance holds the hash of the inputs. So is all that was computed from it, however far away.
Where several values lead to one, it waits until they are computed anew, and then is computed once.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from superduper.fields import paths
from superduper.imputations.decide import projection_of
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import fill_of, input_hash, input_values, is_ours


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
        self._sources: dict[str, tuple[ImputationRecord, ...]] = {}

    @property
    def shape(self) -> tuple[Any, ...]:
        """Equal for graphs that answer the same."""
        return tuple((each.id, each.created_at, each.active is None) for each in self.records)

    def sources(self, record: ImputationRecord) -> tuple[ImputationRecord, ...]:
        """The imputations whose values this one reads."""
        if record.name not in self._sources:
            self._sources[record.name] = tuple(
                other
                for other in self.records
                if other.name != record.name and any(map(record.reads, other.write_paths))
            )
        return self._sources[record.name]

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

    def waits(self, record: ImputationRecord, document: Mapping[str, Any]) -> bool:
        """Whether an input is a value of another imputation that is about to be computed anew.

        What it will be is an event of its own; a model that ran before would run in vain.
        """
        return any(self._is_due(source, document) for source in self.sources(record))

    def _is_due(self, record: ImputationRecord, document: Mapping[str, Any]) -> bool:
        fills = list(own_fills(record, document))
        if not fills or not record.watched or record.active is None:
            return False
        inputs = inputs_of(record, document) if _follows(record) else None
        if inputs is not None and any(fill["input"] != input_hash(inputs) for _, fill in fills):
            return True
        return self.waits(record, document)

    def blanks_before(
        self, record: ImputationRecord, document: Mapping[str, Any]
    ) -> Iterator[ImputationRecord]:
        """The imputations that, if they fill a blank now, have an input computed anew after it.

        A value's own source may be blank: somebody removed it, and it is filled again.
        """
        for source in self.sources(record):
            if not any(own_fills(source, document)) or not _follows(source):
                continue
            for above in self.sources(source):
                yield from self._fillers(above, document)
            yield from self.blanks_before(source, document)

    def _fillers(
        self, record: ImputationRecord, document: Mapping[str, Any]
    ) -> Iterator[ImputationRecord]:
        """Who would fill a blank of an imputation's: it, or first those that its inputs lack."""
        blank = not all(paths.has(document, path) for path in record.write_paths)
        if not blank or not _fills(record):
            return
        if inputs_of(record, document) is not None:
            yield record
            return
        for source in self.sources(record):
            yield from self._fillers(source, document)

    def source_paths(self, record: ImputationRecord) -> tuple[str, ...]:
        """The fields that other imputations fill and this one's values come from, however far."""
        others = (each for each in self.upstream(record) if each.name != record.name)
        return tuple(path for each in others for path in each.write_paths)

    def projection(self, record: ImputationRecord) -> dict[str, int] | None:
        """The fields by which freshness is told; None for all of them."""
        return projection_of(self.upstream(record))


def _fills(record: ImputationRecord) -> bool:
    """Whether a blank may well be filled by it."""
    # A filter may have left the document out since: nobody should wait for what never comes.
    return record.watched and record.active is not None and not record.spec.get("filter")


def _follows(record: ImputationRecord) -> bool:
    """Whether a value of its own is computed anew when its input changes."""
    return _fills(record) and record.spec.get("on_input_change") != "keep"
