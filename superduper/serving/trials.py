"""What is counted of versions on trial: answers of the live one and of others, and differences."""

import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from superduper.fields import codec
from superduper.store.traffic import Traffic

Trial = tuple[str, int]
"""The policy's `_id` and when it was set."""


class Tally:
    """The counts of one process, written to the policies now and then; for several threads."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._lock = threading.Lock()
        self._new: dict[Trial, Counter[str]] = {}
        self._largest: dict[Trial, float] = {}
        self.totals: Counter[tuple[str, str]] = Counter()
        """By the policy's `_id` and what was counted, since this process began."""

    def count(self, trial: Trial, what: str, difference: float = 0.0) -> None:
        """One more; with how far two answers were apart, if that is a number."""
        with self._lock:
            self._new.setdefault(trial, Counter())[what] += 1
            if math.isfinite(difference):
                self._largest[trial] = max(self._largest.get(trial, 0.0), difference)
            self.totals[trial[0], what] += 1

    def flush(self) -> None:
        """Add what is new to the policies. May block."""
        with self._lock:
            new, self._new = self._new, {}
            largest, self._largest = self._largest, {}
        for trial, counts in new.items():
            self._traffic.add(*trial, counts, largest.get(trial, 0.0))


def difference(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> float:
    """How far the outcomes of two versions for the same inputs are apart.

    The largest absolute difference between two numbers; infinite where anything else differs.
    """
    return max(
        (_apart(comparable(a), comparable(b)) for a, b in zip(first, second, strict=True)),
        default=0.0,
    )


def comparable(outcome: Mapping[str, Any]) -> Any:
    """An outcome as far as it is compared: value, or that there is an error; arrays as numpy's."""
    # Whether it failed counts, and not with which words.
    if outcome.get("error"):
        return {"error": True}
    return {"value": codec.decode(outcome.get("value"), arrays="numpy")}


def _apart(first: Any, second: Any) -> float:
    if _is_number(first) and _is_number(second):
        return between(np.asarray(first, "f8"), np.asarray(second, "f8"))
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        if first.shape != second.shape:
            return math.inf
        if first.dtype.kind in "biuf" and second.dtype.kind in "biuf":
            return between(first.astype("f8"), second.astype("f8"))
        return 0.0 if np.array_equal(first, second) else math.inf
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if first.keys() != second.keys():
            return math.inf
        return max((_apart(first[key], second[key]) for key in first), default=0.0)
    if isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            return math.inf
        return max(map(_apart, first, second), default=0.0)
    return 0.0 if type(first) is type(second) and first == second else math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def between(first: Any, second: Any) -> float:
    """The largest difference of two arrays of one shape; what is not finite must be the same."""
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    if same.all():
        return 0.0
    apart = float(np.abs(first[~same] - second[~same]).max())
    return apart if math.isfinite(apart) else math.inf
