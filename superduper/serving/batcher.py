"""Requests that come at the same time share one run of the model.

A lone request never waits. After a batch the next one waits at most a fifth of what a batch takes,
and no longer than until as many rows are there as were in the last one: callers that ask again as
soon as they are answered then stay one batch, where they would else split into two.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from superduper.errors import ChildDied, NotReady, SuperduperError, TimedOut, TooManyRequests

WAIT_SHARE = 0.2
NEWEST_SHARE = 0.2  # of the newest batch in the running mean of what a batch takes

MAX_BATCH_SIZE = 64

Outcomes = list[dict[str, Any]]


class Host(Protocol):
    """Where batches run."""

    def predict(self, values: Sequence[Any], timeout: float | None = None) -> Outcomes: ...


@dataclass(frozen=True)
class _Request:
    values: list[Any]
    deadline: float
    answer: "Future[Outcomes]" = field(default_factory=Future)


class Batcher:
    """Groups requests for one model host; its thread starts with the first request."""

    def __init__(
        self,
        host: Host,
        name: str,
        *,
        max_batch_size: int = MAX_BATCH_SIZE,
        max_wait_ms: float = 2.0,
        max_queue: int = 256,
        timeout: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._name = name
        self._max_rows = max_batch_size
        self._max_wait = max_wait_ms / 1000
        self._max_queue = max_queue
        self._timeout = timeout
        self._clock = clock
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._last_rows = 0
        self._last_end = 0.0
        self._mean_seconds = 0.0

    def submit(self, values: Sequence[Any], deadline: float) -> "Future[Outcomes]":
        """The outcomes of the values, to come.

        Their turn must come before `deadline`, a time of the clock, else the future gets TimedOut.
        It does not cut the run short: that would end a process which others need. The future
        gets whatever running the model raises.
        Raises TooManyRequests if the queue is full, NotReady once closed.
        """
        request = _Request(list(values), deadline)
        with self._changed:
            if self._closed:
                raise NotReady(f"model {self._name!r} is being closed: try again in a moment")
            if len(self._waiting) >= self._max_queue:
                raise TooManyRequests(
                    f"{len(self._waiting)} requests are waiting for model {self._name!r}: "
                    "try again in a moment"
                )
            self._waiting.append(request)
            if self._thread is None:
                name = f"batcher {self._name}"
                self._thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._thread.start()
            self._changed.notify()
        return request.answer

    def close(self, *, finish: bool = False) -> None:
        """Take no more requests; those that wait get NotReady, or with `finish` their answers.

        Returns when the batch in progress has been answered.
        """
        with self._changed:
            self._closed = True
            left = [] if finish else list(self._waiting)
            if not finish:
                self._waiting.clear()
            self._changed.notify()
            thread = self._thread
        for request in left:
            if request.answer.set_running_or_notify_cancel():
                request.answer.set_exception(NotReady(f"model {self._name!r} has been closed"))
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            began = self._clock()
            self._run(batch)
            self._last_end = self._clock()
            seconds = self._last_end - began
            newest = NEWEST_SHARE if self._mean_seconds else 1.0
            self._mean_seconds += newest * (seconds - self._mean_seconds)
            self._last_rows = sum(len(request.values) for request in batch)

    def _next_batch(self) -> list[_Request]:
        """The requests that go next; none once closed and empty."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            release = self._last_end + min(self._max_wait, WAIT_SHARE * self._mean_seconds)
            enough = min(self._last_rows, self._max_rows)
            while not self._closed and self._rows_waiting(enough) < enough:
                left = release - self._clock()
                if left <= 0:
                    break
                self._changed.wait(left)
            return self._take()

    def _rows_waiting(self, enough: int) -> int:
        rows = 0
        for request in self._waiting:
            rows += len(request.values)
            if rows >= enough:
                break
        return rows

    def _take(self) -> list[_Request]:
        batch: list[_Request] = []
        rows = 0
        while self._waiting:
            rows += len(self._waiting[0].values)
            if batch and rows > self._max_rows:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _run(self, batch: list[_Request]) -> None:
        live = [request for request in batch if request.answer.set_running_or_notify_cancel()]
        live = self._in_time(live)
        try:
            self._answer(live)
        except ChildDied as error:
            if len(live) == 1:
                _fail(live, error)
                return
            for request in live:  # one of them ended the process: only that one gets the error
                self._answer_alone(request)
        except Exception as error:  # whatever it is, every caller must hear of it
            _fail(live, error)

    def _in_time(self, requests: list[_Request]) -> list[_Request]:
        now = self._clock()
        text = f"the request waited too long for its turn at model {self._name!r}"
        late = [request for request in requests if request.deadline <= now]
        _fail(late, TimedOut(text))
        return [request for request in requests if request.deadline > now]

    def _answer_alone(self, request: _Request) -> None:
        live = self._in_time([request])
        try:
            self._answer(live)
        except Exception as error:
            _fail(live, error)

    def _answer(self, requests: list[_Request]) -> None:
        if not requests:
            return
        values = [value for request in requests for value in request.values]
        outcomes = self._host.predict(values, self._timeout)
        if len(outcomes) != len(values):
            raise SuperduperError(
                f"model {self._name!r} gave {len(outcomes)} outcomes for {len(values)} values"
            )
        start = 0
        for request in requests:
            stop = start + len(request.values)
            request.answer.set_result(outcomes[start:stop])
            start = stop


def _fail(requests: list[_Request], error: Exception) -> None:
    for request in requests:
        request.answer.set_exception(error)
