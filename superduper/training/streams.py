"""Endless streams of training items, put together to batches by a thread in the background."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy

from superduper.errors import InvalidInput

logger = logging.getLogger(__name__)

_READY_BATCHES = 2
_CLOSE_SECONDS = 5.0


class RandomIds:
    """An endless stream of what loaders return for ids drawn at random; see `load_by_random_id`."""

    def __init__(
        self,
        loaders: Sequence[Callable[[Any], Any]],
        ids: Iterable[Any],
        weights: Iterable[float] | None,
        random_state: int | numpy.random.RandomState | None,
    ) -> None:
        self.loaders = tuple(loaders)
        self.ids = list(ids)
        if not self.loaders or not self.ids:
            raise InvalidInput("load_by_random_id needs at least one loader and one id")
        self._bounds = None if weights is None else _bounds(list(weights), len(self.ids))
        # A seed is drawn if none is given, so that a checkpoint can keep it.
        if random_state is None:
            random_state = int(numpy.random.SeedSequence().generate_state(1)[0])
        self.seed = random_state

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids and weights."""
        bounds = None if self._bounds is None else self._bounds.tolist()
        return sha256(repr((self.ids, bounds)).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"load_by_random_id({len(self.ids)} ids, random_state={self.seed!r})"

    def __iter__(self) -> Iterator[Any]:
        return self.skipping(0)

    def skipping(self, n: int) -> Iterator[Any]:
        """The stream from its `n`-th item on; those before are not loaded."""
        random = self._random()
        random.random_sample(n)
        while True:
            drawn = self._drawn(random.random_sample(1))[0]
            items = tuple(load(drawn) for load in self.loaders)
            yield items[0] if len(items) == 1 else items

    def ids_at(self, first: int, n: int) -> list[Any]:
        """The ids of some items of the stream."""
        return self._drawn(self._random().random_sample(first + n)[first:])

    def _random(self) -> numpy.random.RandomState:
        if not isinstance(self.seed, numpy.random.RandomState):
            return numpy.random.RandomState(self.seed)
        random = numpy.random.RandomState()
        random.set_state(self.seed.get_state())
        return random

    def _drawn(self, points: Any) -> list[Any]:
        if self._bounds is None:
            places = (points * len(self.ids)).astype(int)
        else:
            places = numpy.searchsorted(self._bounds, points, side="right")
        return [self.ids[place] for place in places]


def load_by_random_id(
    *loaders: Callable[[Any], Any],
    ids: Iterable[Any],
    weights: Iterable[float] | None = None,
    random_state: int | numpy.random.RandomState | None = None,
) -> RandomIds:
    """An endless stream of `(loader(id), ...)` with ids drawn at random.

    `weights` are proportional to the chance of each id; equal seeds give equal streams.
    """
    return RandomIds(loaders, ids, weights, random_state)


def _bounds(weights: list[float], n: int) -> Any:
    given = numpy.asarray(weights, dtype=numpy.float64)
    if given.shape != (n,) or not numpy.isfinite(given).all() or (given < 0).any():
        raise InvalidInput(f"weights must be {n} numbers, one for each id, none of them negative")
    if not given.sum() > 0:
        raise InvalidInput("all weights are 0: no id can be drawn")
    sums = given.cumsum()
    return sums / sums[-1]


class _Failure:
    """What went wrong in the background."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Infinite:
    """Epochs of `n_iters_per_epoch` batches from an endless source; the stream never starts anew.

    Going through it gives the next epoch's batches, each a tuple of arrays. A thread prepares them
    while the context is open; what it has ready when the context ends is kept for the next time.
    """

    def __init__(
        self,
        source: Iterable[Any],
        *,
        batch_size: int,
        n_iters_per_epoch: int | None = None,
        batches_per_epoch: int | None = None,
    ) -> None:
        """`batches_per_epoch` is another spelling of `n_iters_per_epoch`."""
        n = n_iters_per_epoch if n_iters_per_epoch is not None else batches_per_epoch
        if not isinstance(n, int) or not isinstance(batch_size, int) or n < 1 or batch_size < 1:
            raise ValueError(
                "n_iters_per_epoch and batch_size must be whole numbers of at least 1, not "
                f"{n!r} and {batch_size!r}"
            )
        self.source = source
        self.batch_size = batch_size
        self.n_iters_per_epoch = n
        self.position = 0
        self._items: Iterator[Any] | None = None
        self._ready: deque[Any] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def __repr__(self) -> str:
        return (
            f"Infinite({self.source!r}, batch_size={self.batch_size}, "
            f"n_iters_per_epoch={self.n_iters_per_epoch}, position={self.position})"
        )

    def __len__(self) -> int:
        return self.n_iters_per_epoch

    def __enter__(self) -> "Infinite":
        if self._thread is None:
            self._closing = threading.Event()
            run = (self._closing, self._ready)
            self._thread = threading.Thread(
                target=self._prepare, args=run, name="batches", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; it finishes the batch it is at, for which it has some seconds."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
        thread.join(_CLOSE_SECONDS)
        if thread.is_alive():
            logger.warning("the source of the batches is busy and left to itself")
            self._ready = deque()
            if self._can_go_back:
                self._items = self._from(self.position * self.batch_size)

    def __call__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        opened_here = self._thread is None
        try:
            for _ in range(self.n_iters_per_epoch):
                yield self.take()
        finally:
            if opened_here:
                self.close()

    def take(self) -> tuple[Any, ...]:
        """The next batch of the stream. An error in the source is raised here, in its place."""
        self.__enter__()
        with self._changed:
            while not self._ready:
                self._changed.wait()
            if isinstance(self._ready[0], _Failure):
                raise self._ready[0].error
            batch: tuple[Any, ...] = self._ready.popleft()
            self._changed.notify_all()
        self.position += 1
        return batch

    def seek(self, position: int) -> None:
        """Go to a batch of the stream, counted from its start.

        A source that can be gone through once only goes forward; backward it stays where it is.
        """
        self.close()
        if self._can_go_back:
            self._ready.clear()
            self._items = self._from(position * self.batch_size)
            self.position = position
            return
        if position < self.position:
            logger.warning("the source cannot go back: the batches are not those of before")
        while self.position < position:
            self.take()
        self.close()

    @property
    def _can_go_back(self) -> bool:
        return iter(self.source) is not self.source

    def _from(self, n: int) -> Iterator[Any]:
        if hasattr(self.source, "skipping"):
            skipping: Iterator[Any] = self.source.skipping(n)
            return skipping
        return islice(iter(self.source), n, None)

    def _prepare(self, closing: threading.Event, ready: deque[Any]) -> None:
        """In the thread: keep some batches ready until told to end."""
        while True:
            with self._changed:
                while len(ready) >= _READY_BATCHES and not closing.is_set():
                    self._changed.wait()
                if closing.is_set():
                    return
            entry = self._next()
            with self._changed:
                ready.append(entry)
                self._changed.notify_all()
            if isinstance(entry, _Failure):
                return

    def _next(self) -> Any:
        """A batch, or what went wrong: the boundary between the source's code and the caller."""
        try:
            if self._items is None:
                self._items = self._from(0)
            items = list(islice(self._items, self.batch_size))
            if len(items) < self.batch_size:
                raise InvalidInput(
                    "the source of Infinite has ended; it must go on for ever, as "
                    "load_by_random_id does"
                )
            return _combined(items)
        except BaseException as error:
            return _Failure(error)


def _combined(items: list[Any]) -> tuple[Any, ...]:
    rows = [tuple(item) if isinstance(item, tuple | list) else (item,) for item in items]
    if len({len(row) for row in rows}) > 1:
        raise InvalidInput(f"items of one batch have {sorted({len(row) for row in rows})} parts")
    arrays = []
    for number, column in enumerate(zip(*rows, strict=True)):
        parts = [numpy.asarray(part) for part in column]
        if len({part.shape for part in parts}) > 1:
            shapes = sorted({part.shape for part in parts})
            raise InvalidInput(f"part {number} of the items of one batch has the shapes {shapes}")
        arrays.append(numpy.stack(parts))
    return tuple(arrays)
