"""Where batches come from. The order depends on seed and epoch only: a position is two numbers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch

from superduper.training.graph import Frame

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
        order = self.order(epoch)
        count = len(self)
        for number in range(start, count):
            first = number * self.batch_size
            last = self.n if number == count - 1 else first + self.batch_size
            index = order[first:last]
            yield Batch(self.gather(index), index, len(index))


def tensor_source(
    tensors: Mapping[str, torch.Tensor], batch_size: int, seed: int | None = None
) -> IndexSource:
    """A source over tensors in memory, one record per row."""

    def gather(index: torch.Tensor) -> Frame:
        return {name: tensor[index] for name, tensor in tensors.items()}

    return IndexSource(len(next(iter(tensors.values()))), gather, batch_size, seed)
