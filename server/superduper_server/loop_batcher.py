"""Batches run by the server's event loop, which is where their requests come from and go to.

A thread that waits for the model's process would take turns with the loop for the interpreter, many
times for each batch. So the loop itself sends a batch, and the socket tells it when the answer is
there. Whatever is not so simple (a process that must be started, is slow or has died, an answer
that does not come at once) is left to a thread, which may wait.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from superduper.serving.batcher import Batcher
from superduper.serving.batches import Outcomes, Request
from superduper.serving.host import ModelHost

PATIENCE_SECONDS = 0.05
"""How long the loop waits for an answer by itself; a thread also reads what the model prints."""


class LoopBatcher(Batcher):
    """Groups requests for one model host; `thread` is the one that `loop` runs in.

    Any thread may ask; only `close` must not be called by the loop's.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        thread: int,
        host: ModelHost,
        name: str,
        *,
        timeout: float = 30.0,
        **options: Any,
    ) -> None:
        super().__init__(host, name, timeout=timeout, **options)
        self._loop = loop
        self._loop_thread = thread
        self._host = host
        self._timeout = timeout
        self._next: asyncio.Handle | None = None
        self._waits = False
        self._running: _Running | None = None
        self._asked: _Running | None = None
        """The batch whose answer the loop itself waits for."""
        self._bell = _Bell(loop, self._answer, self._push)
        self._patience: asyncio.TimerHandle | None = None

    def _look(self) -> None:
        if self._running is not None:
            return  # one looks again once that has ended
        if threading.get_ident() != self._loop_thread:
            self._loop.call_soon_threadsafe(self._begin_next)
            return
        if self._waits and self._next is not None and self._batches.is_full:
            self._next.cancel()
            self._next = None
        if self._next is None:
            # Not at once: more may have come in this turn of the loop.
            self._next, self._waits = self._loop.call_soon(self._begin_next), False

    def _wait_for_end(self) -> None:
        with self._changed:
            if self._batches.count:
                self._look()
            while self._running is not None or self._batches.count:
                self._changed.wait()
        try:
            self._loop.call_soon_threadsafe(self._bell.close)
        except RuntimeError:  # the loop has ended, and watches nothing any more
            self._bell.close()

    # In the loop's thread --------------------------------------------------------------------

    def _begin_next(self) -> None:
        """Begin the batch that is due, if there is one."""
        with self._changed:
            self._next, self._waits = None, False
            if self._running is not None or not self._batches.count:
                return
            left = 0.0 if self._closed else self._batches.seconds_left(self._clock())
            if left > 0:
                self._next, self._waits = self._loop.call_later(left, self._begin_next), True
                return
            batch, now = self._batches.take(), self._clock()
            running = self._running = _Running(batch, now, self.figures.worked)
        running.live = self._runs.live(running.batch)
        if not running.live:
            self._end()
        else:
            self._begin(running)

    def _begin(self, running: "_Running") -> None:
        values = self._runs.values(running.live)
        if not self._host.begin(values):
            self._in_thread(running, lambda: self._host.predict(values, self._timeout))
            return
        self._asked = running
        if not self._bell.watch(self._host.bell):
            self._hand_over()
            return
        if not self._host.push():
            self._bell.watch_room()
        if self._patience is None:  # it looks again: there is none for each batch
            self._patience = self._loop.call_later(PATIENCE_SECONDS, self._look_at_patience)

    def _push(self) -> None:
        """There is room for more of a batch that is larger than what a socket holds."""
        if self._host.push():
            self._bell.forget_room()

    def _answer(self) -> None:
        """Something has come from the process, or it has ended."""
        running = self._asked
        if running is None:  # a thread asks it, and will hear of it
            self._bell.forget()
            return
        try:
            outcomes = self._host.answer_now()
        except Exception as error:
            self._asked = None
            self._runs.fail(running.live, error)
            self._end()
            return
        if outcomes is None:
            self._hand_over()
            return
        self._asked = None
        self._runs.run(running.live, lambda: outcomes)
        self._end()

    def _look_at_patience(self) -> None:
        self._patience = None
        running = self._asked
        if running is None:
            return
        left = running.began + PATIENCE_SECONDS - self._clock()
        if left > 0:
            self._patience = self._loop.call_later(left, self._look_at_patience)
        else:
            self._hand_over()

    def _end(self) -> None:
        with self._changed:
            running, self._running = self._running, None
            if running is not None:
                worked = self.figures.worked - running.worked
                self._batches.note_end(running.batch, running.began, self._clock(), worked)
            if self._batches.count:
                self._look()
            if self._closed:
                self._changed.notify_all()

    # Where one may wait ----------------------------------------------------------------------

    def _hand_over(self) -> None:
        running, self._asked = self._asked, None
        assert running is not None
        self._bell.forget()
        left = max(0.0, running.began + self._timeout - self._clock())
        self._in_thread(running, lambda: self._host.answer(left))

    def _in_thread(self, running: "_Running", ask: Callable[[], Outcomes]) -> None:
        def work() -> None:
            self._runs.run(running.live, ask)
            self._loop.call_soon_threadsafe(self._end)

        threading.Thread(target=work, name=f"batch of {self._name}", daemon=True).start()


class _Running:
    """A batch that has been taken."""

    __slots__ = ("batch", "began", "live", "worked")

    def __init__(self, batch: list[Request], began: float, worked: float) -> None:
        self.batch = batch
        self.began = began
        self.worked = worked
        self.live: list[Request] = []


class _Bell:
    """A socket that the loop watches under a file number of our own; others may close it any time.

    A loop must not be left watching a number that has come to mean another file. It goes on
    watching from one batch to the next, which is cheaper than to begin again with each.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ring: Callable[[], None],
        ring_for_room: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._ring = ring
        self._ring_for_room = ring_for_room
        self._source: socket.socket | None = None
        self._file = -1
        self._is_watched = self._is_watched_for_room = False

    def watch(self, source: socket.socket | None) -> bool:
        """Ring when there is something to read; False if the socket is closed already."""
        if source is not self._source:
            self.close()
            if source is None:
                return False
            try:
                self._file = os.dup(source.fileno())
            except OSError:
                return False
            self._source = source
        if self._source is None:
            return False
        if not self._is_watched:
            self._loop.add_reader(self._file, self._ring)
            self._is_watched = True
        return True

    def watch_room(self) -> None:
        """Ring when there is room for more to be sent."""
        self._loop.add_writer(self._file, self._ring_for_room)
        self._is_watched_for_room = True

    def forget_room(self) -> None:
        """Do not ring for room any more."""
        if self._is_watched_for_room:
            self._loop.remove_writer(self._file)
            self._is_watched_for_room = False

    def forget(self) -> None:
        """Do not ring any more, until it is watched again."""
        self.forget_room()
        if self._is_watched:
            self._loop.remove_reader(self._file)
            self._is_watched = False

    def close(self) -> None:
        """Let go of the socket."""
        if self._source is not None:
            if not self._loop.is_closed():
                self.forget()
            os.close(self._file)
            self._source = None
