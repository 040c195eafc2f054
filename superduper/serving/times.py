"""How often something took how long: counted in buckets, at next to no cost."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Times:
    """A histogram; one thread writes it, others may read."""

    def __init__(self, bounds: tuple[float, ...] = BOUNDS) -> None:
        self.total = 0.0
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Times":
        """What another process tells of its own with `to_document`."""
        made = cls(tuple(told["bounds"]))
        made.total, made._counts = told["total"], list(told["counts"])
        return made

    def to_document(self) -> dict[str, Any]:
        """What there is to tell, for another process."""
        return {"bounds": list(self._bounds), "total": self.total, "counts": list(self._counts)}

    @property
    def count(self) -> int:
        """How many were counted."""
        return sum(self._counts)

    def add(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds, and how many were no larger, as Prometheus has them."""
        found, below = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            found.append((bound, float(below)))
        return found
