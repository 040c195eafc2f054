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
        self._bell = _Bell()

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
            running = self._running = _Running(self._batches.take(), self._clock())
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
        bell = self._bell.of(self._host.bell)
        if bell is None:
            self._hand_over(running)
            return
        self._loop.add_reader(bell, self._answer, running, bell)
        if not self._host.push():
            self._loop.add_writer(bell, self._push, running, bell)
            running.is_sending = True
        running.patience = self._loop.call_later(
            PATIENCE_SECONDS, self._stop_waiting, running, bell
        )

    def _push(self, running: "_Running", bell: int) -> None:
        """There is room for more of a batch that is larger than what a socket holds."""
        if self._host.push():
            self._loop.remove_writer(bell)
            running.is_sending = False

    def _answer(self, running: "_Running", bell: int) -> None:
        try:
            outcomes = self._host.answer_now()
        except Exception as error:
            self._forget(running, bell)
            self._runs.fail(running.live, error)
            self._end()
            return
        if outcomes is None:
            self._stop_waiting(running, bell)
            return
        self._forget(running, bell)
        self._runs.run(running.live, lambda: outcomes)
        self._end()

    def _stop_waiting(self, running: "_Running", bell: int) -> None:
        self._forget(running, bell)
        self._hand_over(running)

    def _forget(self, running: "_Running", bell: int) -> None:
        self._loop.remove_reader(bell)
        if running.is_sending:
            self._loop.remove_writer(bell)
        if running.patience is not None:
            running.patience.cancel()

    def _end(self) -> None:
        with self._changed:
            running, self._running = self._running, None
            if running is not None:
                self._batches.note_end(running.batch, running.began, self._clock())
            if self._batches.count:
                self._look()
            if self._closed:
                self._changed.notify_all()

    # Where one may wait ----------------------------------------------------------------------

    def _hand_over(self, running: "_Running") -> None:
        left = max(0.0, running.began + self._timeout - self._clock())
        self._in_thread(running, lambda: self._host.answer(left))

    def _in_thread(self, running: "_Running", ask: Callable[[], Outcomes]) -> None:
        def work() -> None:
            self._runs.run(running.live, ask)
            self._loop.call_soon_threadsafe(self._end)

        threading.Thread(target=work, name=f"batch of {self._name}", daemon=True).start()


class _Running:
    """A batch that has been taken."""

    __slots__ = ("batch", "began", "is_sending", "live", "patience")

    def __init__(self, batch: list[Request], began: float) -> None:
        self.batch = batch
        self.began = began
        self.live: list[Request] = []
        self.is_sending = False
        self.patience: asyncio.TimerHandle | None = None


class _Bell:
    """A file number of our own for a socket that others may close at any time.

    A loop must not be left watching a number that has come to mean another file.
    """

    def __init__(self) -> None:
        self._source: socket.socket | None = None
        self._file: int | None = None

    def of(self, source: socket.socket | None) -> int | None:
        """The number; None if the socket is closed already."""
        if source is not self._source:
            self.close()
        if source is not None and self._file is None:
            try:
                self._file = os.dup(source.fileno())
            except OSError:
                return None
            self._source = source
        return self._file

    def close(self) -> None:
        """Forget it."""
        if self._file is not None:
            os.close(self._file)
        self._source = self._file = None
