"""Where batches come from. The order depends on seed and epoch only: a position is two numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy
import torch

from superduper.training.graph import Frame

# Small batches are gathered several at once: most of the time for one goes into asking for it.
_BLOCK_BYTES = 1 << 20

Gather = Callable[[torch.Tensor], Frame]


@dataclass(frozen=True)
class Batch:
    """A frame, the positions of its records in the source, and how many there are."""

    frame: Frame
    index: torch.Tensor
    n: int


class Source(Protocol):
    """Batches of an epoch, from the `start`-th on; `len` is the number of batches."""

    def __len__(self) -> int: ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


def permutation(n: int, seed: int, epoch: int) -> torch.Tensor:
    """An order of `n` records that depends on seed and epoch and on nothing else."""
    generator = numpy.random.Generator(numpy.random.Philox(key=[seed % 2**64, epoch]))
    return torch.from_numpy(generator.permutation(n))


class IndexSource:
    """Batches gathered by index from records in memory or in mapped files.

    `gather` returns the tensors of records by place, those of one batch or of several at once.
    With a seed the order changes every epoch; without, it is the order of the records. The last
    batch may be smaller; it is never dropped. `join_single` joins a last batch of one record to the
    one before it: batch normalisation cannot be trained on a single record.
    """

    def __init__(
        self,
        n: int,
        gather: Gather,
        batch_size: int,
        seed: int | None = None,
        *,
        join_single: bool = False,
    ) -> None:
        self.n = n
        self.gather = gather
        self.batch_size = batch_size
        self.seed = seed
        self._joined = join_single and n > batch_size > 1 and n % batch_size == 1

    def __len__(self) -> int:
        return -(-self.n // self.batch_size) - self._joined

    def order(self, epoch: int) -> torch.Tensor:
        """The positions of the records in the order of an epoch."""
        if self.seed is None:
            return torch.arange(self.n)
        return permutation(self.n, self.seed, epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from the `start`-th on."""
        order, sizes = self.order(epoch), self.sizes()
        several = 1  # batches at once; how many, the first one shows
        while start < len(sizes):
            block = sizes[start : start + several]
            places = self.places(order, start, block)
            index = torch.cat(tuple(places))
            frame = self.gather(index)
            counts = [len(each) for each in places]
            for part, own, n in zip(split(frame, counts), places, counts, strict=True):
                yield Batch(part, own, n)
            start += len(block)
            several = max(1, _BLOCK_BYTES * len(block) // max(bytes_of(frame), 1))

    def places(self, order: torch.Tensor, start: int, sizes: list[int]) -> Sequence[torch.Tensor]:
        """Which records go into some batches, the first of which is the `start`-th."""
        first = start * self.batch_size
        return torch.split(order[first : first + sum(sizes)], sizes)

    def sizes(self) -> list[int]:
        """The number of records of each batch."""
        if self.n == 0:
            return []
        full = len(self) - 1
        return [self.batch_size] * full + [self.n - self.batch_size * full]


def split(part: Any, sizes: list[int]) -> Sequence[Any]:
    """A frame, or a part of one, cut into batches of these sizes. They share its memory."""
    if isinstance(part, torch.Tensor):
        # Detached: autograd lets nobody change one of several views of a tensor in its place.
        return [each.detach() for each in torch.split(part, sizes)]
    if isinstance(part, Mapping):
        rows = zip(*(split(value, sizes) for value in part.values()), strict=True)
        return [dict(zip(part, row, strict=True)) for row in rows]
    return list(zip(*(split(value, sizes) for value in part), strict=True))


def bytes_of(part: Any) -> int:
    """The memory that the tensors of a frame, or of a part of one, take."""
    if isinstance(part, torch.Tensor):
        return part.nbytes
    return sum(map(bytes_of, part.values() if isinstance(part, Mapping) else part))


def tensor_source(
    tensors: Mapping[str, torch.Tensor], batch_size: int, seed: int | None = None
) -> IndexSource:
    """A source over tensors in memory, one record per row."""

    def gather(index: torch.Tensor) -> Frame:
        return {name: tensor.index_select(0, index) for name, tensor in tensors.items()}

    return IndexSource(len(next(iter(tensors.values()))), gather, batch_size, seed)
