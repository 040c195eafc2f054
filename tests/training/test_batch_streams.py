"""Streams go on where they were, and tell of what goes wrong in them."""

import itertools
import threading
from collections.abc import Iterator

import pytest
from first_door import Plain

from superduper.errors import InvalidInput
from superduper.training import streams
from superduper.training.streams import Infinite, load_by_random_id
from superduper.training.train import train_model


def test_a_source_that_hangs_does_not_keep_others_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "_CLOSE_SECONDS", 0.05)
    blocked, release = threading.Event(), threading.Event()

    def load(number: int) -> int:
        if number == 2 and not release.is_set():
            blocked.set()
            release.wait(30)
        return number

    class Numbers:
        def __iter__(self) -> Iterator[int]:
            return map(load, itertools.count())

    batches = Infinite(Numbers(), batch_size=1, n_iters_per_epoch=2)
    with batches:
        assert batches.take()[0] == [0]
        assert blocked.wait(30)
    release.set()
    assert [array.tolist() for (array,) in batches] == [[1], [2]]
    assert [array.tolist() for (array,) in batches] == [[3], [4]]


def test_what_was_ready_is_kept_for_the_next_time() -> None:
    def numbers() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    batches = Infinite(numbers(), batch_size=2, n_iters_per_epoch=3)
    taken = [array.tolist() for _ in range(3) for (array,) in batches]
    assert taken == [[2 * n, 2 * n + 1] for n in range(9)]


def test_a_source_that_ends_is_told_of() -> None:
    batches = Infinite(iter([(1, 2)] * 5), batch_size=2, n_iters_per_epoch=3)
    with pytest.raises(InvalidInput, match="has ended; it must go on for ever"):
        list(batches)


def test_an_error_in_the_source_reaches_the_caller_and_ends_the_thread() -> None:
    def load(number: int) -> float:
        if number == 7:
            raise ZeroDivisionError("item 7")
        return 1.0

    batches = Infinite(
        load_by_random_id(load, load, ids=range(9), random_state=0),
        batch_size=2,
        n_iters_per_epoch=100,
    )
    with pytest.raises(ZeroDivisionError, match="item 7"):
        train_model(Plain(), batches, 1, lr=1)
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]
    with pytest.raises(ZeroDivisionError, match="item 7"):
        list(batches)
