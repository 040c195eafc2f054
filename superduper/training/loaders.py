"""Batches from a loader of the user's, in an order that depends on seed and epoch only."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy
import torch

from superduper.errors import InvalidInput
from superduper.training.randomness import random_state, seed_everything, set_random_state
from superduper.training.sources import Batch

_WITH_LENGTH = (torch.Tensor, Mapping, list, tuple, numpy.ndarray)


class LoaderSource:
    """A `torch.utils.data.DataLoader`, or anything that can be gone through more than once.

    Everything random is seeded anew at the start of an epoch. To go on within an epoch, the
    batches that were done are drawn once more and passed over, and the random states put back.
    """

    def __init__(self, loader: Any, seed: int, name: str) -> None:
        if hasattr(loader, "__next__"):
            raise InvalidInput(
                f"the {name} loader can be gone through only once: give a DataLoader"
            )
        self.loader = loader
        self.seed = seed
        self.name = name

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from the `start`-th on."""
        before = random_state()
        self._seed_epoch(epoch)
        iterator = iter(self.loader)
        for _ in islice(iterator, start):
            pass
        if start:
            set_random_state(before)
        number = start
        for number, content in enumerate(iterator, start + 1):
            arguments = as_arguments(content)
            yield Batch({"batch": arguments}, torch.tensor([number]), size_of(arguments))
        if number == 0:
            raise InvalidInput(f"the {self.name} loader has no batches")

    def _seed_epoch(self, epoch: int) -> None:
        words = numpy.random.SeedSequence([self.seed, epoch]).generate_state(2, numpy.uint32)
        seed = (int(words[0]) << 31) ^ int(words[1])
        seed_everything(seed)
        sampler = getattr(self.loader, "sampler", None)
        for holder in (self.loader, sampler):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)


def as_arguments(content: Any) -> tuple[Any, ...]:
    """What the step functions are called with: a tuple's or list's parts, or the one thing."""
    return tuple(content) if isinstance(content, list | tuple) else (content,)


def size_of(content: Any) -> int:
    """The number of records in a batch: the length of the first thing in it that has one."""
    if isinstance(content, torch.Tensor):
        return content.shape[0] if content.ndim else 1
    if isinstance(content, Mapping):
        return size_of(tuple(content.values()))
    if not isinstance(content, list | tuple):
        return len(content) if hasattr(content, "__len__") else 1
    for part in content:
        if isinstance(part, _WITH_LENGTH):
            return size_of(part)
    return max(len(content), 1)


def moved(content: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device."""
    if isinstance(content, torch.Tensor):
        return content.to(device, non_blocking=True)
    if isinstance(content, Mapping):
        return {key: moved(value, device) for key, value in content.items()}
    if isinstance(content, list | tuple):
        parts = [moved(part, device) for part in content]
        return tuple(parts) if isinstance(content, tuple) else parts
    return content
