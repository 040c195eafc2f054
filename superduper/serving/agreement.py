"""Whether two forms of a model agree: of the same inputs, what they answer is compared.

Numbers (floats, alone or in arrays) may differ a little; labels are whatever else there is, and are
the same or not.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from superduper.serving.trials import between, comparable

Pairs = list[tuple[Any, Any]]


@dataclass(frozen=True)
class Limits:
    """What is agreement enough.

    `tolerance`: the largest difference of two numbers, as a part of the largest number that the
    model gave in that place for any input (a confidence: as it is). `agreement`: the share of
    inputs whose labels must be the same; if it is told, rows of numbers are taken for scores and
    the place of the largest for a label.
    """

    tolerance: float
    agreement: float | None

    @property
    def least_same(self) -> float:
        """The share that is demanded."""
        return 0.99 if self.agreement is None else self.agreement


@dataclass(frozen=True)
class Agreement:
    """How far two forms agree: see `Limits`; `same` is None where there are no labels."""

    difference: float
    same: float | None

    def refused(self, limits: Limits) -> str | None:
        """Why it is not enough; None if it is."""
        if self.same is not None and self.same < limits.least_same:
            return (
                f"labels are the same for {self.same:.3g} of the inputs, "
                f"and {limits.least_same:g} is demanded"
            )
        if self.difference > limits.tolerance:
            return (
                f"numbers differ by {self.difference:.3g} of the largest, "
                f"and {limits.tolerance:g} is the tolerance"
            )
        return None


def compare(
    plain: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], limits: Limits
) -> Agreement:
    """How far the outcomes of two forms for the same inputs agree."""
    numbers: dict[str, Pairs] = {}
    same = []
    for first, second in zip(plain, other, strict=True):
        labels = list(_labels(_whole(first), _whole(second), numbers, limits))
        if labels:
            same.append(all(labels))
    apart = [_apart(path, pairs) for path, pairs in numbers.items()]
    return Agreement(max(apart, default=0.0), sum(same) / len(same) if same else None)


def _whole(outcome: Mapping[str, Any]) -> dict[str, Any]:
    beside = {key: outcome[key] for key in ("confidence", "runner_up") if key in outcome}
    return {**comparable(outcome), **beside}


def _labels(first: Any, second: Any, numbers: dict[str, Pairs], limits: Limits) -> Iterator[bool]:
    """Whether each label of two outcomes is the same; their numbers are put with the others."""
    ours, theirs = dict(_leaves(first, "")), dict(_leaves(second, ""))
    if ours.keys() != theirs.keys():
        yield False
        return
    for path, one in ours.items():
        other = theirs[path]
        if not (_is_numbers(one) and _is_numbers(other) and one.shape == other.shape):
            yield bool(np.array_equal(one, other))
            continue
        numbers.setdefault(path, []).append((one, other))
        if limits.agreement is not None and one.ndim == 1 and len(one) > 1:
            yield int(one.argmax()) == int(other.argmax())


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list) and not all(isinstance(item, float) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    else:
        yield path, np.asarray(value, "f8") if isinstance(value, float | list) else value


def _is_numbers(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fc"


def _apart(path: str, pairs: Pairs) -> float:
    difference = max(between(np.asarray(one), np.asarray(other)) for one, other in pairs)
    if path == ".confidence" or not difference:
        return difference
    sizes = [np.abs(one[np.isfinite(one)]).max(initial=0.0) for one, _ in pairs]
    largest = float(max(sizes))
    return difference / largest if largest else math.inf
