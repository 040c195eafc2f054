"""Batches from a loader of the user's, in an order that depends on seed and epoch only."""

from collections.abc import Iterator, Mapping
from itertools import count, islice
from typing import Any

import numpy
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from superduper.errors import InvalidInput
from superduper.training.randomness import random_state, seed_everything, set_random_state
from superduper.training.sources import Batch

_NUMBERS = 64  # made at a time: one by one they take as long as a layer does
_WITH_LENGTH = (torch.Tensor, Mapping, list, tuple, numpy.ndarray)


class LoaderSource:
    """A `torch.utils.data.DataLoader`, or anything that can be gone through more than once.

    Everything random is seeded anew at the start of an epoch. To go on within an epoch, the
    batches that were done are drawn once more and passed over, and the random states put back.
    """

    def __init__(self, loader: Any, seed: int, name: str) -> None:
        if loader is None:
            raise InvalidInput(f"there is no {name} loader: give a DataLoader")
        if hasattr(loader, "__next__"):
            raise InvalidInput(
                f"the {name} loader can be gone through only once: give a DataLoader"
            )
        self.loader = loader
        self._batches = gathering(loader)
        self.seed = seed
        self.name = name

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from the `start`-th on."""
        before = random_state()
        self._seed_epoch(epoch)
        iterator = iter(self._batches)
        for _ in islice(iterator, start):
            pass
        if start:
            set_random_state(before)
        none = start == 0
        for number, content in zip(_numbers(start + 1), iterator, strict=False):
            none = False
            arguments = as_arguments(content)
            yield Batch({"batch": arguments}, number, size_of(arguments))
        if none:
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


class _Rows(Dataset[list[torch.Tensor]]):
    """The records of tensors, several at once: asked for a list of places, it answers a batch."""

    def __init__(self, tensors: tuple[torch.Tensor, ...], places: torch.Tensor | None) -> None:
        self.tensors = tensors
        self.places = places

    def __getitem__(self, index: list[int]) -> list[torch.Tensor]:
        rows = torch.tensor(index)
        if self.places is not None:
            rows = self.places[rows]
        return [tensor.index_select(0, rows) for tensor in self.tensors]


def gathering(loader: Any) -> Any:
    """A loader of the same batches that takes each out of the tensors at once, if that is possible.

    A DataLoader asks its dataset for one record after the other and stacks them: for a dataset that
    is nothing but tensors, that is most of the time of a small model's step.
    """
    if type(loader) is not DataLoader or loader.num_workers or loader.batch_sampler is None:
        return loader
    rows = _rows(loader.dataset)
    if rows is None or loader.collate_fn is not default_collate:
        return loader
    return DataLoader(
        rows,
        batch_size=None,
        sampler=loader.batch_sampler,
        collate_fn=_as_it_is,
        generator=loader.generator,
        pin_memory=loader.pin_memory,
    )


def _rows(dataset: Any) -> _Rows | None:
    """A dataset of tensors, or a part of one, as rows; None if it is something else."""
    if type(dataset) is TensorDataset:
        return _Rows(dataset.tensors, None)
    if type(dataset) is not Subset:
        return None
    whole, places = _rows(dataset.dataset), torch.as_tensor(dataset.indices)
    if whole is None:
        return None
    return _Rows(whole.tensors, places if whole.places is None else whole.places[places])


def _as_it_is(batch: Any) -> Any:
    return batch


def _numbers(first: int) -> Iterator[torch.Tensor]:
    """Endless whole numbers, as tensors of one."""
    for start in count(first, _NUMBERS):
        yield from torch.split(torch.arange(start, start + _NUMBERS), 1)


def number_in_epoch(index: torch.Tensor) -> str:
    """A batch of a loader in words."""
    return f"batch {int(index[0])} of the epoch"


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
