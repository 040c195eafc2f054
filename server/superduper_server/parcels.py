"""Predictions on their way between the processes of one server: those of one moment go together.

Values and outcomes that are blocks of tensors stay so, and are joined to one block.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from superduper.jobs.channel import Message
from superduper.serving.batches import Outcomes, Request
from superduper.serving.blocks import Block, BlockOutcomes, join, pack, unpack
from superduper_server.link import error_in, told


@dataclass(frozen=True, slots=True)
class Sent:
    """A request under way, with the number that its sender has for it."""

    number: int
    component: str
    request: Request


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of the request of that number."""

    number: int
    run_at: float
    """When its batch began to run, by the clock that all processes of a machine have."""
    result: Outcomes | Exception


def pack_requests(sent: Sequence[Sent]) -> list[Message]:
    """Requests as they travel, in order."""
    return [
        {
            "component": group[0].component,
            "numbers": [each.number for each in group],
            "counts": [len(each.request.values) for each in group],
            "owners": [each.request.owner for each in group],
            "deadlines": [each.request.deadline for each in group],
            **pack_values(join([each.request.values for each in group])),
        }
        for group in _groups([(_kind(each.component, each.request.values), each) for each in sent])
    ]


def unpack_requests(parcel: Message) -> Iterator[tuple[int, Sequence[Any], float, str]]:
    """Number, values, deadline and owner of each request."""
    parts = _parts(unpack_values(parcel), parcel["counts"])
    yield from zip(parcel["numbers"], parts, parcel["deadlines"], parcel["owners"], strict=True)


def pack_answers(answers: Sequence[Answered]) -> list[Message]:
    """Answers as they travel, in order."""
    return [
        {
            "numbers": [each.number for each in group],
            "run_at": [each.run_at for each in group],
            **_results([each.result for each in group]),
        }
        for group in _groups([(_kind("", each.result), each) for each in answers])
    ]


def unpack_answers(parcel: Message) -> Iterator[tuple[int, float, Outcomes | Exception]]:
    """Number, when it began to run, and what became of it, of each answer."""
    results: Iterable[Outcomes | Exception]
    if "error" in parcel:
        results = itertools.repeat(error_in(parcel["error"]), len(parcel["numbers"]))
    else:
        results = _parts(unpack_outcomes(parcel), parcel["counts"])
    yield from zip(parcel["numbers"], parcel["run_at"], results, strict=True)


def pack_values(values: Sequence[Any]) -> Message:
    """Values as they travel."""
    if isinstance(values, Block):
        return {**pack(values), "block": bytes(values.data)}
    return {"values": values}


def unpack_values(parcel: Message) -> Sequence[Any]:
    """The values that have travelled."""
    if (block := unpack(parcel)) is not None:
        return block
    values: list[Any] = parcel["values"]
    return values


def pack_outcomes(outcomes: Outcomes) -> Message:
    """Outcomes as they travel."""
    if isinstance(outcomes, BlockOutcomes):
        return pack_values(outcomes.whole)
    return {"outcomes": outcomes}


def unpack_outcomes(parcel: Message) -> Outcomes:
    """The outcomes that have travelled."""
    if (block := unpack(parcel)) is not None:
        return BlockOutcomes(block)
    outcomes: list[dict[str, Any]] = parcel["outcomes"]
    return outcomes


def _kind(component: str, content: Any) -> tuple[Any, ...]:
    """What must be the same for things to travel as one."""
    if isinstance(content, Exception):
        return (id(content),)
    if isinstance(content, BlockOutcomes):
        return component, content.block.layout
    return component, content.layout if isinstance(content, Block) else None


def _groups(keyed: list[tuple[tuple[Any, ...], Any]]) -> list[list[Any]]:
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for key, each in keyed:
        groups.setdefault(key, []).append(each)
    return list(groups.values())


def _results(results: list[Any]) -> Message:
    first = results[0]
    if isinstance(first, Exception):
        return {"error": told(first)}
    counts = [len(each) for each in results]
    if isinstance(first, BlockOutcomes):
        return {"counts": counts, **pack_values(join([each.whole for each in results]))}
    return {"counts": counts, "outcomes": [each for result in results for each in result]}


def _parts(whole: Sequence[Any], counts: Sequence[int]) -> Iterator[Sequence[Any]]:
    start = 0
    for count in counts:
        yield whole[start : start + count]
        start += count
