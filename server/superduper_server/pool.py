"""Threads for what may block, with a bounded queue before them."""

import asyncio
import threading
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


class Pool:
    """Runs blocking calls for the event loop.

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
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()

    async def run(self, call: Callable[[], T], *, seconds: float) -> T:
        """The call's result.

        Raises TooManyRequests if the queue is full, TimedOut at the deadline, and whatever the
        call raises. A call that nobody waits for any more is not begun.
        """
        if self.pending >= self.capacity:
            raise TooManyRequests(f"{self.pending} {self.name} are waiting: try again in a moment")
        work = _Work(call, asyncio.get_running_loop().create_future())
        self._submit(work)
        try:
            await asyncio.wait((work.future,), timeout=seconds)
        finally:
            work.abandoned = not work.future.done()
        if work.abandoned:
            raise TimedOut(f"no answer within {seconds:g} seconds")
        result: T = work.future.result()
        return result

    def _submit(self, work: _Work) -> None:
        self.pending += 1
        self._queue.put(work)
        if self._started < min(self.pending, self.threads):
            self._started += 1
            name = f"superduper-{self.name}-{self._started}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
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
            self._queue.put(None)
        self._started = 0
