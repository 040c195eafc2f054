"""What `train_model` is given as batches, as a source of the engine's."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from superduper.errors import InvalidInput
from superduper.training.loaders import LoaderSource, number_in_epoch
from superduper.training.sources import Batch
from superduper.training.streams import Infinite, RandomIds


class TrainBatches(Protocol):
    """A source that knows where it is, and what data it is of."""

    fingerprint: str | None

    def __len__(self) -> int: ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...

    def opened(self) -> contextlib.AbstractContextManager[Any]: ...

    def describe(self, index: torch.Tensor) -> str: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def batches_of(batch_iter: Any) -> TrainBatches:
    """The source that some batches are.

    Raises InvalidInput for what cannot be gone through again every epoch.
    """
    if isinstance(batch_iter, Infinite):
        return StreamBatches(batch_iter)
    if callable(batch_iter) and not hasattr(batch_iter, "__iter__"):
        batch_iter = _Called(batch_iter)
    if hasattr(batch_iter, "__next__") or not hasattr(batch_iter, "__iter__"):
        raise InvalidInput(
            f"batch_iter is a {type(batch_iter).__name__}, which cannot be gone through again "
            "every epoch: wrap it in Infinite, or give a list, a DataLoader or a function"
        )
    return PassBatches(batch_iter)


class _Called:
    """A function that returns an epoch's batches."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __iter__(self) -> Iterator[Any]:
        return iter(self.function())


class StreamBatches:
    """The batches of an `Infinite`: an epoch is the next so many of them."""

    def __init__(self, stream: Infinite) -> None:
        self.stream = stream
        self.fingerprint = getattr(stream.source, "fingerprint", None)

    def __len__(self) -> int:
        return len(self.stream)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from the `start`-th on."""
        size = self.stream.batch_size
        for _ in range(start, len(self.stream)):
            first = self.stream.position * size
            arrays = self.stream.take()
            yield Batch({"batch": arrays}, torch.arange(first, first + size), size)

    def opened(self) -> contextlib.AbstractContextManager[Any]:
        """The stream with its thread running."""
        return self.stream

    def describe(self, index: torch.Tensor) -> str:
        """The items of a batch by id where ids are known, by place in the stream elsewhere."""
        first, n = int(index[0]), len(index)
        if isinstance(self.stream.source, RandomIds):
            return f"the ids {self.stream.source.ids_at(first, n)}"
        return f"items {first} to {first + n - 1} of the stream"

    def state_dict(self) -> dict[str, Any]:
        """How many items were taken, and the seed of the stream."""
        items = self.stream.position * self.stream.batch_size
        seed = getattr(self.stream.source, "seed", None)
        return {"items": items, "seed": seed if isinstance(seed, int) else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a state was."""
        if isinstance(self.stream.source, RandomIds) and state["seed"] is not None:
            self.stream.source.seed = state["seed"]
        self.stream.seek(state["items"] // self.stream.batch_size)


class PassBatches(LoaderSource):
    """The batches of something that is gone through anew every epoch."""

    fingerprint: str | None = None

    def __init__(self, batch_iter: Any) -> None:
        # The order follows torch's generator, so that `torch.manual_seed` repeats it.
        super().__init__(batch_iter, int(torch.randint(2**31, ())), "batch_iter")

    def opened(self) -> contextlib.AbstractContextManager[Any]:
        """The context of the batches, if they have one."""
        if hasattr(self.loader, "__enter__"):
            context: contextlib.AbstractContextManager[Any] = self.loader
            return context
        return contextlib.nullcontext()

    def describe(self, index: torch.Tensor) -> str:
        """The number of the batch in its epoch."""
        return number_in_epoch(index)

    def state_dict(self) -> dict[str, Any]:
        """The seed of the order."""
        return {"seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the same order."""
        self.seed = state["seed"]
