"""What an imputation must not be beside others: one that fills the same field, part of a circle."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from superduper.errors import InvalidInput
from superduper.fields.paths import overlap

if TYPE_CHECKING:
    from superduper.imputations.imputation import ImputationRecord


def check_fields(record: "ImputationRecord", there: Sequence["ImputationRecord"]) -> None:
    """Raise InvalidInput if an imputation cannot be beside those that are there."""
    for place, path in enumerate(record.write_paths):
        if overlap(path, "_id"):
            raise InvalidInput(f"field {path!r} cannot be filled: every document has its `_id`")
        if overlap(path, "_fold"):
            raise InvalidInput("field '_fold' cannot be filled: it says who learns from a document")
        for other in record.write_paths[:place]:
            if overlap(path, other):
                raise InvalidInput(f"{other!r} and {path!r} cannot both be filled: they overlap")
        if any(overlap(path, source) for source in record.input_paths):
            raise InvalidInput(f"field {path!r} cannot be predicted from itself")
    watched = [other for other in there if other.name != record.name and other.watched]
    if record.watched:
        _check_targets(record, watched)
        _check_circles(record, watched)


def _check_targets(record: "ImputationRecord", others: Sequence["ImputationRecord"]) -> None:
    for other in others:
        for path in record.write_paths:
            taken = next((each for each in other.write_paths if overlap(path, each)), None)
            if taken is not None:
                raise InvalidInput(
                    f"field {path!r} clashes with {taken!r}, which imputation {other.name!r} "
                    "fills: one field is filled by one imputation; delete that one first, or "
                    "choose another field"
                )


def _check_circles(record: "ImputationRecord", others: Sequence["ImputationRecord"]) -> None:
    ways: list[tuple[ImputationRecord, ...]] = [(record,)]
    reached = set[str]()
    while ways:
        way = ways.pop()
        if len(way) > 1 and any(record.reads(path) for path in way[-1].write_paths):
            raise InvalidInput(_circle(way))
        for other in others:
            reads = any(other.reads(path) for path in way[-1].write_paths)
            if reads and other.name not in reached:
                reached.add(other.name)
                ways.append((*way, other))


def _circle(way: Sequence["ImputationRecord"]) -> str:
    steps = [f"{each.name!r} fills {', '.join(map(repr, each.write_paths))}" for each in way]
    told = ", from which ".join(steps)
    return f"imputation {way[0].name!r} would close a circle: {told}, which {way[0].name!r} reads"
