"""Blocking calls in threads: bounded, with deadlines, given up when nobody waits."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from starlette.requests import ClientDisconnect

from superduper.errors import NotFound, TimedOut, TooManyRequests
from superduper_server.backend import unless_gone
from superduper_server.pool import Pool
from tests.waiting import until


@pytest.fixture
def pool() -> Iterator[Pool]:
    found = Pool("tests", threads=1, waiting=1)
    yield found
    found.close()


def test_answers_and_errors_come_back(pool: Pool) -> None:
    def fail() -> None:
        raise NotFound("nothing")

    async def go() -> None:
        assert await pool.run(lambda: 6 * 7, seconds=5) == 42
        with pytest.raises(NotFound, match="nothing"):
            await pool.run(fail, seconds=5)
        assert pool.pending == 0

    asyncio.run(go())


def test_an_error_that_is_a_timeout_is_not_taken_for_our_deadline(pool: Pool) -> None:
    def fail() -> None:
        raise TimedOut("the model took too long")

    with pytest.raises(TimedOut, match="the model took"):
        asyncio.run(pool.run(fail, seconds=5))


def test_a_full_queue_is_refused(pool: Pool) -> None:
    go_on = threading.Event()

    async def go() -> None:
        first = asyncio.ensure_future(pool.run(go_on.wait, seconds=5))
        second = asyncio.ensure_future(pool.run(go_on.wait, seconds=5))
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests, match="2 tests are waiting"):
            await pool.run(go_on.wait, seconds=5)
        go_on.set()
        assert all(await asyncio.gather(first, second))

    asyncio.run(go())


def test_each_owner_has_his_turn_and_who_has_most_gives_way() -> None:
    pool = Pool("tests", threads=1, waiting=4)
    go_on, done = threading.Event(), []

    async def go() -> None:
        first = asyncio.ensure_future(pool.run(go_on.wait, seconds=5))
        until(lambda: not pool._turns._of_owner, what="the thread is busy")

        def ask(name: str) -> "asyncio.Future[None]":
            call = pool.run(lambda: done.append(name), seconds=5, owner=name[0])
            return asyncio.ensure_future(call)

        many = [ask(f"a{number}") for number in range(4)]
        await asyncio.sleep(0)
        few = [ask("b0"), ask("b1")]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests, match="5 tests are waiting"):
            await ask("b2")  # he would have more than the other
        with pytest.raises(TooManyRequests, match="5 tests are waiting"):
            await ask("a4")
        go_on.set()
        assert await first
        told = await asyncio.gather(*many, *few, return_exceptions=True)
        assert [type(each) for each in told] == [
            *(type(None), type(None), TooManyRequests, TooManyRequests),
            *(type(None), type(None)),
        ]
        assert done == ["a0", "b0", "a1", "b1"]
        assert pool.pending == 0
        assert await pool.run(lambda: 5, seconds=5) == 5

    asyncio.run(go())
    pool.close()


def test_a_call_that_hangs_keeps_its_place_after_its_deadline(pool: Pool) -> None:
    go_on = threading.Event()

    async def go() -> None:
        with pytest.raises(TimedOut, match="0.05 seconds"):
            await pool.run(go_on.wait, seconds=0.05)
        assert pool.pending == 1
        go_on.set()
        assert await pool.run(lambda: "next", seconds=5) == "next"
        assert pool.pending == 0

    asyncio.run(go())


def test_a_call_nobody_waits_for_is_not_begun(pool: Pool) -> None:
    go_on = threading.Event()
    begun = []

    async def go() -> None:
        first = asyncio.ensure_future(pool.run(go_on.wait, seconds=5))
        second = asyncio.ensure_future(pool.run(lambda: begun.append(2), seconds=5))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait((second,))
        go_on.set()
        await first
        await pool.run(lambda: begun.append(3), seconds=5)

    asyncio.run(go())
    assert begun == [3]


def test_a_client_that_hangs_up_gives_up_its_place_in_the_queue(pool: Pool) -> None:
    go_on = threading.Event()
    begun = []

    async def hung_up() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def go() -> None:
        first = asyncio.ensure_future(pool.run(go_on.wait, seconds=5))
        await asyncio.sleep(0)
        with pytest.raises(ClientDisconnect):
            await unless_gone(hung_up, pool.run(lambda: begun.append(1), seconds=5))
        await asyncio.sleep(0)  # the loop's turn, in which the call is given up
        go_on.set()
        await first
        await pool.run(lambda: None, seconds=5)

    asyncio.run(go())
    assert begun == []


def test_threads_end_with_the_pool() -> None:
    pool = Pool("ending", threads=3, waiting=10)

    async def go() -> None:
        await asyncio.gather(*(pool.run(lambda: None, seconds=5) for _ in range(9)))

    asyncio.run(go())
    threads = [t for t in threading.enumerate() if t.name.startswith("superduper-ending")]
    assert 1 <= len(threads) <= 3
    pool.close()
    for thread in threads:
        thread.join(timeout=5)
        assert not thread.is_alive()
