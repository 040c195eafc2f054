"""Threads for what may block, with a bounded queue before them."""

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from superduper.errors import TimedOut, TooManyRequests

T = TypeVar("T")


class _Work:
    """One call that waits for a thread."""

    def __init__(self, call: Callable[[], Any], future: "asyncio.Future[Any]") -> None:
        self.call = call
        self.future = future
        self.loop = future.get_loop()
        self.abandoned = False


class _Turns:
    """The calls that wait, each owner's in a queue of their own; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_owner: OrderedDict[str, deque[_Work]] = OrderedDict()

    def put(self, owner: str, work: _Work) -> None:
        """Add one behind its owner's others."""
        with self._lock:
            self._of_owner.setdefault(owner, deque()).append(work)

    def take(self) -> _Work | None:
        """The next one: each owner in turn. None if the last one was given up for another."""
        with self._lock:
            if not self._of_owner:
                return None
            owner, waiting = next(iter(self._of_owner.items()))
            work = waiting.popleft()
            if waiting:
                self._of_owner.move_to_end(owner)
            else:
                del self._of_owner[owner]
            return work

    def give_up_for(self, owner: str) -> _Work | None:
        """The newest call of whoever has most, if this owner would still have fewer with one more.

        So a full queue is no reason to refuse somebody who takes less of it than others.
        """
        with self._lock:
            most: deque[_Work] = max(self._of_owner.values(), key=len, default=deque())
            own = len(self._of_owner.get(owner, ()))
            return most.pop() if len(most) > own + 1 else None


class Pool:
    """Runs blocking calls for the event loop, those of each owner in turn.

    Not anyio's threads: there, a call that is given up at its deadline frees its place while its
    thread goes on, so that a database that hangs would collect threads without end. Here a place
    is free when the thread is. The threads are daemons: a call that hangs cannot hold up the exit.
    """

    def __init__(self, name: str, *, threads: int, waiting: int) -> None:
        self.name = name
        self.threads = threads
        self.capacity = threads + waiting
        self.pending = 0
        self._started = 0
        self._turns = _Turns()
        self._bell: SimpleQueue[bool] = SimpleQueue()
        """Rung with True for each call that waits, with False for each thread that is to end."""

    async def run(self, call: Callable[[], T], *, seconds: float, owner: str = "") -> T:
        """The call's result; `owner` is whose it is.

        Raises TooManyRequests if the queue is full of this owner's calls, or others take no more of
        it, TimedOut at the deadline, and whatever the call raises. A call that nobody waits for any
        more is not begun.
        """
        if self.pending >= self.capacity:
            self._make_room(owner)
        work = _Work(call, asyncio.get_running_loop().create_future())
        self._submit(owner, work)
        try:
            await asyncio.wait((work.future,), timeout=seconds)
        finally:
            work.abandoned = not work.future.done()
        if work.abandoned:
            raise TimedOut(f"no answer within {seconds:g} seconds")
        result: T = work.future.result()
        return result

    def _make_room(self, owner: str) -> None:
        error = TooManyRequests(f"{self.pending} {self.name} are waiting: try again in a moment")
        given_up = self._turns.give_up_for(owner)
        if given_up is None:
            raise error
        self._finish(given_up, None, error)

    def _submit(self, owner: str, work: _Work) -> None:
        self.pending += 1
        self._turns.put(owner, work)
        self._bell.put(True)
        if self._started < min(self.pending, self.threads):
            self._started += 1
            name = f"superduper-{self.name}-{self._started}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        while self._bell.get():
            if (work := self._turns.take()) is None:
                continue
            result, error = None, None
            if not work.abandoned:
                try:
                    result = work.call()
                except Exception as raised:
                    error = raised
            try:
                work.loop.call_soon_threadsafe(self._finish, work, result, error)
            except RuntimeError:
                return  # the loop is closed: the server has ended, and nobody waits
            del work, result, error

    def _finish(self, work: _Work, result: Any, error: Exception | None) -> None:
        self.pending -= 1
        if work.future.done():
            return
        if error is not None:
            work.future.set_exception(error)
            if work.abandoned:
                work.future.exception()  # was looked at: asyncio need not report it
        else:
            work.future.set_result(result)

    def close(self) -> None:
        """Let the threads end when the queue is empty."""
        for _ in range(self._started):
            self._bell.put(False)
        self._started = 0
