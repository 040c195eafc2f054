"""What a process of a group has of a batch, and how it comes to what the whole batch measured."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import distributed

from superduper.training.group import Group


class BatchPart:
    """The part of a batch that a process has: of 7 records 3 for one and 4 for the other.

    A process for which there is none gets the batch's first record, so that it has something to
    compute, and it is counted as nothing.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.n = self.whole = 1

    def bounds(self, rank: int, n: int) -> tuple[int, int]:
        """Which records of a batch of `n` a process has; one's own part is then in force."""
        size = self.group.size
        first, last = n * rank // size, n * (rank + 1) // size
        if rank == self.group.rank:
            self.n, self.whole = last - first, n
        return (first, last) if last > first else (0, 1)

    @property
    def share(self) -> float:
        """The part of the whole, from 0 to 1."""
        return self.n / self.whole

    def average(self, parameter: torch.Tensor) -> None:
        """Make a gradient, of a mean over the part, that of the whole batch."""
        assert parameter.grad is not None
        parameter.grad.mul_(self.share)
        distributed.all_reduce(parameter.grad)

    def mean(self, values: Any) -> Any:
        """Means over the part as means over the whole batch."""
        return self._added(values, self.share)

    def sum(self, values: Any) -> Any:
        """Sums over the part as sums over the whole batch."""
        return self._added(values, float(self.n > 0))

    def _added(self, values: Any, weight: float) -> Any:
        leaves = list(_leaves(values))
        if not leaves:
            return values
        flat = [
            torch.as_tensor(leaf).detach().to(self.group.device, torch.float64) for leaf in leaves
        ]
        total = torch.cat([each.reshape(-1) for each in flat]).mul_(weight)
        distributed.all_reduce(total)
        return _like(values, iter(torch.split(total, [each.numel() for each in flat])))


def _leaves(values: Any) -> Iterator[Any]:
    if isinstance(values, Mapping):
        for value in values.values():
            yield from _leaves(value)
    else:
        yield values


def _like(values: Any, parts: Iterator[torch.Tensor]) -> Any:
    """Numbers in the form of those given; on a GPU they stay there, nobody has to wait for them."""
    if isinstance(values, Mapping):
        return {name: _like(value, parts) for name, value in values.items()}
    part = next(parts)
    if isinstance(values, numpy.ndarray):
        return part.cpu().numpy().reshape(values.shape)
    if isinstance(values, torch.Tensor):
        return part.to(values.device).reshape(values.shape)
    return float(part)


def part_of(content: Any, n: int, first: int, last: int) -> Any:
    """Some records of a batch of `n`: rows of what has a row for each, the rest as it is."""
    if isinstance(content, torch.Tensor | numpy.ndarray):
        return content[first:last] if content.ndim and len(content) == n else content
    if isinstance(content, Mapping):
        return {key: part_of(value, n, first, last) for key, value in content.items()}
    if not isinstance(content, list | tuple):
        return content
    if any(
        isinstance(each, torch.Tensor | numpy.ndarray | Mapping | list | tuple) for each in content
    ):
        parts = [part_of(each, n, first, last) for each in content]
        return tuple(parts) if isinstance(content, tuple) else parts
    return content[first:last] if len(content) == n else content
