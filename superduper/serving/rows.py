"""What a model made of each value: its rows, and the outcomes that are told of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superduper.errors import InvalidInput
from superduper.serving.failures import Failure, WrongRows

Outcome = dict[str, Any]
"""`{"value": output}`, with `"confidence"` and `"runner_up"` where the model tells them, or
`{"error": {...}}`; and `"out_of_domain"` where the sample is unlike those of the training."""


@dataclass(frozen=True)
class Row:
    """What the model made of one sample, with confidence and second choice where there are such."""

    output: Any
    confidence: float | None = None
    runner_up: Any = None


class Pieces(list[Any]):
    """What a model yielded for one row, where the whole of it is asked at once."""


def plain(output: Any) -> Any:
    """The output with numbers of any library made Python's, tuples and what yields made lists."""
    if isinstance(output, Mapping):
        return {str(key): plain(value) for key, value in output.items()}
    # One by one: `list` of what never ends would not let it be told whose output that is.
    if isinstance(output, tuple | list | Iterator):
        return [plain(value) for value in output]
    is_single = getattr(output, "shape", None) == () and hasattr(output, "item")
    return output.item() if is_single else output


def to_outcome(row: Any, output: Any) -> Outcome:
    """What is told of a row (or the Failure in its place) and what was made of its output."""
    if isinstance(output, Failure):
        return {"error": output.error}
    known = {"confidence": row.confidence, "runner_up": row.runner_up}
    return {"value": output, **{key: each for key, each in known.items() if each is not None}}


def marked(outcomes: Sequence[Outcome], outside: Sequence[Any]) -> list[Outcome]:
    """The outcomes, those with the mark `out_of_domain` that have something in `outside`."""
    return [
        outcome if why is None else {**outcome, "out_of_domain": why}
        for outcome, why in zip(outcomes, outside, strict=True)
    ]


def chance(confidence: Any) -> float:
    """A confidence as a number from 0 to 1; raises InvalidInput if it is none."""
    number = float(confidence)
    # Weights in half precision may add up to a little more than 1.
    if not -1e-3 <= number <= 1 + 1e-3:
        raise InvalidInput(f"a confidence must be between 0 and 1, not {number}")
    return min(max(number, 0.0), 1.0)


def split(made: Any, count: int, what: str) -> list[Any]:
    """What a function of a list returned, item by item; a list has one item for each input."""
    if isinstance(made, tuple | Mapping) or hasattr(made, "unbind"):
        from superduper.serving import collate

        return collate.unbatch(made, count, what)
    rows = list(made)
    if len(rows) != count:
        raise WrongRows.of(what, len(rows), count)
    return rows
