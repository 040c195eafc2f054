"""How requests are grouped, and what each of them gets."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from superduper.errors import (
    ChildDied,
    NotReady,
    SuperduperError,
    TimedOut,
    TooManyRequests,
    UserCodeError,
)
from superduper.serving.batcher import Batcher
from superduper.serving.batches import Batches, Request

SOON = 20.0
FAR = float("inf")


class Doubling:
    """A host that doubles, remembers its batches, and waits at a gate while that is closed."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[Any]] = []
        self.seconds = seconds
        self.tells_place = True
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def predict(self, values: Sequence[Any], timeout: float | None = None) -> list[dict[str, Any]]:
        self.batches.append(list(values))
        self.entered.release()
        assert self.gate.wait(SOON)
        time.sleep(self.seconds)
        if "die" in values:
            raise ChildDied("the child is dead")
        if "hang" in values:
            error = TimedOut("the child did not answer")
            error.position = values.index("hang") if self.tells_place else None
            raise error
        if "raise" in values:
            raise UserCodeError("the model raised")
        if "lose" in values:
            return []
        return [{"value": value * 2} for value in values]


@pytest.fixture
def host() -> Iterator[Doubling]:
    host = Doubling()
    yield host
    host.gate.set()


def behind_the_gate(host: Doubling, batcher: Batcher, first: Any = 0) -> Future[Any]:
    """A request that is running, so that later ones wait together."""
    host.gate.clear()
    future = batcher.submit([first], FAR)
    assert host.entered.acquire(timeout=SOON)
    return future


def test_requests_that_wait_share_a_batch(host: Doubling) -> None:
    batcher = Batcher(host, "m", max_batch_size=4)
    first = behind_the_gate(host, batcher)
    futures = [batcher.submit(values, FAR) for values in ([1], [2, 3], [4], [5, 6, 7, 8, 9], [10])]
    host.gate.set()
    assert first.result(SOON) == [{"value": 0}]
    doubled = [[outcome["value"] for outcome in future.result(SOON)] for future in futures]
    assert doubled == [[2], [4, 6], [8], [10, 12, 14, 16, 18], [20]]
    assert host.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]
    batcher.close()


def test_many_threads_at_once() -> None:
    host = Doubling(seconds=0.002)
    batcher = Batcher(host, "m")

    def ask(thread: int) -> None:
        for step in range(20):
            value = thread * 100 + step
            assert batcher.submit([value], FAR).result(SOON) == [{"value": value * 2}]

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(ask, range(64)))
    batcher.close()
    assert sum(map(len, host.batches)) == 64 * 20
    assert max(map(len, host.batches)) <= 64
    assert len(host.batches) < 64 * 20 / 4


def test_a_lone_caller_never_waits(host: Doubling) -> None:
    batcher = Batcher(host, "m", max_wait_ms=10_000)
    host.seconds = 1.0
    batcher.submit([1], FAR).result(SOON)
    host.seconds = 0.0
    began = time.monotonic()
    batcher.submit([1], FAR).result(SOON)
    assert time.monotonic() - began < 0.15, "it waited a fifth of what the first batch took"
    batcher.close()


def test_callers_that_come_back_stay_one_batch(host: Doubling) -> None:
    batcher = Batcher(host, "m", max_wait_ms=10_000)
    host.seconds = 1.0
    first = behind_the_gate(host, batcher)
    futures = [batcher.submit([n], FAR) for n in range(8)]
    host.gate.set()
    first.result(SOON)
    for _ in range(3):
        for future in futures:
            future.result(SOON)
        host.seconds = 0.0
        futures = [batcher.submit([n], FAR) for n in range(8)]
    for future in futures:
        future.result(SOON)
    batcher.close()
    assert [len(batch) for batch in host.batches] == [1, 8, 8, 8, 8]


def test_owners_take_turns(host: Doubling) -> None:
    batcher = Batcher(host, "m", max_batch_size=2)
    first = behind_the_gate(host, batcher)
    answered: list[Any] = []

    def put(owner: str, value: int) -> None:
        batcher.put(Request([value], FAR, lambda _: answered.append(value), owner))

    for value in (1, 2, 3, 4):
        put("much", value)
    put("little", 10)
    host.gate.set()
    first.result(SOON)
    batcher.close(finish=True)
    assert host.batches == [[0], [1, 10], [2, 3], [4]]
    assert answered == [1, 10, 2, 3, 4]


def test_what_nobody_waits_for_is_not_run(host: Doubling) -> None:
    batcher = Batcher(host, "m")
    behind_the_gate(host, batcher)
    told: list[Any] = []
    given_up = Request([1], FAR, told.append)
    batcher.put(given_up)
    given_up.cancel()
    host.gate.set()
    batcher.close(finish=True)
    assert host.batches == [[0]]
    assert told == []


def test_a_full_queue_says_so(host: Doubling) -> None:
    batcher = Batcher(host, "m", max_queue=2)
    behind_the_gate(host, batcher)
    batcher.submit([1], FAR)
    batcher.submit([2], FAR)
    with pytest.raises(TooManyRequests, match="2 requests are waiting for model 'm'"):
        batcher.submit([3], FAR)
    host.gate.set()
    batcher.close(finish=True)


def test_what_comes_too_late_is_not_run(host: Doubling) -> None:
    batcher = Batcher(host, "m")
    behind_the_gate(host, batcher)
    late = batcher.submit([1], time.monotonic() - 1)
    good = batcher.submit([2], time.monotonic() + 60)
    host.gate.set()
    with pytest.raises(TimedOut, match="waited too long"):
        late.result(SOON)
    assert good.result(SOON) == [{"value": 4}]
    assert host.batches == [[0], [2]]
    batcher.close()


def test_cancelled_requests_are_skipped(host: Doubling) -> None:
    batcher = Batcher(host, "m")
    behind_the_gate(host, batcher)
    given_up = batcher.submit([1], FAR)
    wanted = batcher.submit([2], FAR)
    assert given_up.cancel()
    host.gate.set()
    assert wanted.result(SOON) == [{"value": 4}]
    assert host.batches == [[0], [2]]
    batcher.close()


def test_each_request_of_a_failed_batch_gets_the_error(host: Doubling) -> None:
    batcher = Batcher(host, "m")
    behind_the_gate(host, batcher)
    futures = [batcher.submit([value], FAR) for value in (1, "raise", 2)]
    host.gate.set()
    for future in futures:
        with pytest.raises(UserCodeError, match="the model raised"):
            future.result(SOON)
    assert batcher.submit([3], FAR).result(SOON) == [{"value": 6}]
    batcher.close()


def test_only_the_request_that_ends_the_process_gets_child_died(host: Doubling) -> None:
    batcher = Batcher(host, "m")
    behind_the_gate(host, batcher)
    futures = [batcher.submit([value], FAR) for value in (1, "die", 2)]
    host.gate.set()
    with pytest.raises(ChildDied):
        futures.pop(1).result(SOON)
    assert [future.result(SOON) for future in futures] == [[{"value": 2}], [{"value": 4}]]
    alone = batcher.submit(["die"], FAR)
    with pytest.raises(ChildDied):
        alone.result(SOON)
    assert host.batches[-1] == ["die"]
    assert host.batches[-2] == [2]
    batcher.close()


def test_only_the_request_that_hangs_is_late_if_it_is_known(host: Doubling) -> None:
    batcher = Batcher(host, "m")
    behind_the_gate(host, batcher)
    futures = [batcher.submit(values, FAR) for values in ([1, 2], [3, "hang"], [4], [5])]
    host.gate.set()
    with pytest.raises(TimedOut):
        futures.pop(1).result(SOON)
    assert [len(future.result(SOON)) for future in futures] == [2, 1, 1]
    assert host.batches[1:] == [[1, 2, 3, "hang", 4, 5], [1, 2, 4, 5]]
    host.tells_place = False
    behind_the_gate(host, batcher)
    futures = [batcher.submit([value], FAR) for value in (1, "hang")]
    host.gate.set()
    for future in futures:  # each of them might hang again
        with pytest.raises(TimedOut):
            future.result(SOON)
    batcher.close()


def test_a_batch_takes_no_more_than_there_is_time_for() -> None:
    batches = Batches(timeout=8.0)
    rows = [Request([n], FAR, lambda _: None) for n in range(100)]
    for row in rows:
        batches.put(row)
    assert len(batches.take()) == 64  # nothing is known yet
    cases = ((8, 8.0, 4), (4, 40.0, 1), (1, 0.001, 64), (64, 0.0, 64))
    for taken, worked, then in cases:
        batches.note_end(rows[:taken], 0.0, 50.0, worked)
        for row in rows:
            batches.put(row)
        assert len(batches.take()) == then


def test_lost_outcomes_are_an_error(host: Doubling) -> None:
    batcher = Batcher(host, "m")
    with pytest.raises(SuperduperError, match="gave 0 outcomes for 1 values"):
        batcher.submit(["lose"], FAR).result(SOON)
    batcher.close()


def test_closing_answers_everybody(host: Doubling) -> None:
    batcher = Batcher(host, "m")
    running = behind_the_gate(host, batcher)
    waiting = batcher.submit([1], FAR)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    with pytest.raises(NotReady, match="has been closed"):
        waiting.result(SOON)
    host.gate.set()
    closing.join(SOON)
    assert running.result(0) == [{"value": 0}]
    with pytest.raises(NotReady, match="being closed"):
        batcher.submit([2], FAR)


def test_closing_may_finish_what_was_accepted(host: Doubling) -> None:
    batcher = Batcher(host, "m")
    behind_the_gate(host, batcher)
    waiting = batcher.submit([1], FAR)
    host.gate.set()
    batcher.close(finish=True)
    assert waiting.result(0) == [{"value": 2}]
