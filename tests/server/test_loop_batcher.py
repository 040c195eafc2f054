"""Batches that an event loop runs on a real child process: quick, slow, dying, large, closed."""

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from pymongo.database import Database

from superduper.errors import ChildDied, InvalidInput, NotReady, TimedOut
from superduper.fields.sealing import seal
from superduper.imputations.hosting import launch
from superduper.serving.blocks import Block, BlockOutcomes, floats
from superduper.serving.host import ModelHost
from superduper.store.artifacts import ArtifactStore
from superduper.store.registry import Registry
from superduper.store.signing import Keyring
from superduper_server import loop_batcher
from superduper_server.loop_batcher import PATIENCE_SECONDS, LoopBatcher
from tests.waiting import until

SOON = 60.0
FAR = float("inf")


class Told(torch.nn.Module):
    """Twice its input; a first number of 1, 2, 3, 4 is slow, deadly, talkative, endless.

    With 9 only the first number is answered.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        import os
        import time

        firsts = x[:, 0]
        if bool((firsts == 1).any()):
            time.sleep(0.2)
        if bool((firsts == 2).any()):
            os._exit(7)
        if bool((firsts == 3).any()):
            print("x" * 300_000)
        while bool((firsts == 4).any()):
            pass
        return (x[:, :1] if bool((firsts == 9).any()) else x) * 2


def endless(x: Any) -> Any:
    """A function, which is asked for one value after the other; a first number of 4 is endless."""
    while float(x[0]) == 4:
        pass
    return x * 2


@pytest.fixture
def loop() -> Iterator[tuple[asyncio.AbstractEventLoop, int]]:
    """A loop that runs in a thread, and the number of that."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert thread.ident is not None
    yield loop, thread.ident
    loop.call_soon_threadsafe(loop.stop)
    thread.join(SOON)
    loop.close()


@pytest.fixture(params=[Told()])
def host(request: pytest.FixtureRequest, database: Database[dict[str, Any]]) -> Iterator[ModelHost]:
    registry = Registry(database, ArtifactStore(database, Keyring.open()))
    sealed = seal({"object": request.param, "preprocess": None, "postprocess": None})
    component = registry.register("c", "model", "m", sealed, author="tests", details={})
    host = ModelHost(registry.payload(component), "m", launch)
    yield host
    host.close()


@pytest.fixture
def batcher(host: ModelHost, loop: tuple[asyncio.AbstractEventLoop, int]) -> Iterator[LoopBatcher]:
    batcher = LoopBatcher(*loop, host, "m", timeout=2.0)
    yield batcher
    batcher.close()


def row(first: float, width: int = 2) -> Block:
    numbers = torch.zeros(1, width)
    numbers[0, 0] = first
    return Block(floats(width), numbers.numpy().tobytes())


def ask(batcher: LoopBatcher, first: float, width: int = 2) -> "Future[Any]":
    return batcher.submit(row(first, width), FAR)


def doubled(future: "Future[Any]") -> float:
    [outcome] = future.result(SOON)
    return float(torch.frombuffer(bytearray(outcome["value"][2:]), dtype=torch.float32)[0])


def together(batcher: LoopBatcher, firsts: list[float]) -> "list[Future[Any]]":
    """Requests that come in one turn of the loop, so that they share a batch."""

    async def submit() -> list[Future[Any]]:
        return [ask(batcher, first) for first in firsts]

    return asyncio.run_coroutine_threadsafe(submit(), batcher._loop).result(SOON)


def test_the_loop_itself_sends_and_is_told(
    batcher: LoopBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doubled(ask(batcher, 10)) == 20  # starts the process: a thread's work
    until(lambda: batcher._running is None)
    monkeypatch.setattr(loop_batcher, "PATIENCE_SECONDS", SOON)
    monkeypatch.setattr(batcher, "_in_thread", None)
    futures = together(batcher, [5, 6, 7])
    assert [doubled(future) for future in futures] == [10, 12, 14]
    assert isinstance(futures[0].result(), BlockOutcomes)
    assert batcher.figures.rows.total == 4 and batcher.figures.rows.count == 2


def test_a_model_that_takes_longer_is_waited_for_in_a_thread(batcher: LoopBatcher) -> None:
    assert PATIENCE_SECONDS < 0.2
    ask(batcher, 10).result(SOON)
    slow = ask(batcher, 1)
    until(lambda: any(t.name == "batch of m" for t in threading.enumerate()), what="a thread")
    assert doubled(slow) == 2
    assert doubled(ask(batcher, 6)) == 12


def test_only_what_ends_the_process_fails(batcher: LoopBatcher) -> None:
    ask(batcher, 10).result(SOON)
    first, deadly, last = together(batcher, [5, 2, 6])
    with pytest.raises(ChildDied):
        deadly.result(SOON)
    assert [doubled(first), doubled(last)] == [10, 12]


@pytest.mark.parametrize("host", [endless], indirect=True)
def test_only_what_never_ends_is_late_where_it_is_known(batcher: LoopBatcher) -> None:
    ask(batcher, 10).result(SOON)
    first, late, last = together(batcher, [5, 4, 6])
    with pytest.raises(TimedOut):
        late.result(SOON)
    assert [doubled(first), doubled(last)] == [10, 12]


def test_a_process_that_was_killed_between_requests_is_started_again(
    batcher: LoopBatcher, host: ModelHost
) -> None:
    for first in (10, 6):
        ask(batcher, first).result(SOON)
        until(lambda: batcher._running is None)
    assert batcher._bell._is_watched
    os.kill(host._child.pid, 9)  # type: ignore[attr-defined]
    until(lambda: not host._child.alive, what="the end of the process")
    until(lambda: not batcher._bell._is_watched, what="the loop has turned away from it")
    assert doubled(ask(batcher, 6)) == 12


def test_the_loop_goes_on_watching_from_one_batch_to_the_next(
    batcher: LoopBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(batcher, 10).result(SOON)
    until(lambda: batcher._running is None)
    assert doubled(ask(batcher, 6)) == 12
    until(lambda: batcher._running is None)
    monkeypatch.setattr(batcher._loop, "add_reader", None)
    monkeypatch.setattr(batcher._loop, "remove_reader", None)
    assert [doubled(ask(batcher, first)) for first in (7, 8)] == [14, 16]
    until(lambda: batcher._running is None)
    monkeypatch.undo()


def test_what_a_thread_asks_in_between_does_not_disturb_the_loop(
    batcher: LoopBatcher, host: ModelHost
) -> None:
    for first in range(10, 20):
        assert doubled(ask(batcher, first)) == 2 * first
        until(lambda: batcher._running is None)
        assert len(host.predict(row(first))) == 1


def test_what_cannot_be_sent_fails_alone(batcher: LoopBatcher) -> None:
    ask(batcher, 10).result(SOON)
    until(lambda: batcher._running is None)
    with pytest.raises(InvalidInput, match="cannot be encoded"):
        batcher.submit([object()], FAR).result(SOON)
    assert doubled(ask(batcher, 6)) == 12


def test_a_model_that_prints_more_than_a_pipe_holds_goes_on(batcher: LoopBatcher) -> None:
    ask(batcher, 10).result(SOON)
    assert [doubled(future) for future in together(batcher, [3, 6])] == [6, 12]


def test_a_batch_that_never_ends_is_late_and_the_next_is_answered(batcher: LoopBatcher) -> None:
    ask(batcher, 10).result(SOON)
    with pytest.raises(TimedOut):
        ask(batcher, 4).result(SOON)
    assert doubled(ask(batcher, 6)) == 12


def test_more_than_the_socket_takes_at_once(batcher: LoopBatcher) -> None:
    ask(batcher, 10).result(SOON)
    wide = 500_000
    assert doubled(ask(batcher, 8, wide)) == 16
    assert doubled(ask(batcher, 6)) == 12


def test_the_loop_itself_sends_more_than_the_socket_takes_at_once(
    batcher: LoopBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(batcher, 10).result(SOON)
    until(lambda: batcher._running is None)
    monkeypatch.setattr(loop_batcher, "PATIENCE_SECONDS", SOON)
    monkeypatch.setattr(batcher, "_in_thread", None)
    assert [doubled(ask(batcher, 9, 3_000_000)) for _ in range(3)] == [18] * 3


def test_closing_may_finish_what_was_accepted(batcher: LoopBatcher) -> None:
    ask(batcher, 10).result(SOON)
    slow = ask(batcher, 1)
    until(lambda: batcher._running is not None)
    waiting = ask(batcher, 6)
    batcher.close(finish=True)
    assert [doubled(slow), doubled(waiting)] == [2, 12]
    with pytest.raises(NotReady):
        ask(batcher, 7)


def test_closing_again_when_the_loop_has_ended_does_nothing(batcher: LoopBatcher) -> None:
    ask(batcher, 10).result(SOON)
    batcher.close(finish=True)
    loop = asyncio.new_event_loop()
    loop.close()
    batcher._loop = loop
    batcher.close()


def test_closing_at_once_answers_everybody(batcher: LoopBatcher, host: ModelHost) -> None:
    ask(batcher, 10).result(SOON)
    endless = ask(batcher, 4)
    until(lambda: batcher._running is not None)
    waiting = ask(batcher, 6)
    host.close()
    batcher.close()
    for future in (endless, waiting):
        with pytest.raises(NotReady):
            future.result(SOON)


def test_who_waits_for_others_goes_when_they_are_there(batcher: LoopBatcher) -> None:
    ask(batcher, 10).result(SOON)
    for future in together(batcher, [5, 6, 7]):
        future.result(SOON)
    until(lambda: batcher._running is None)
    batcher._batches._max_wait = batcher._batches._mean_seconds = SOON  # until they are three again
    batcher._batches._last_end = batcher._clock()
    early = ask(batcher, 5)
    until(lambda: batcher._waits, what="it waits for the others")
    futures = [early, *together(batcher, [6, 7])]
    assert [doubled(future) for future in futures] == [10, 12, 14]
    assert batcher.figures.rows.count == 3
