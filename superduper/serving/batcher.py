"""Requests that come at the same time share one run of the model.

A lone request never waits. After a batch the next one waits at most a fifth of what a batch takes,
and no longer than until as many rows are there as were in the last one and waited beside it. So
callers that ask again as soon as they are answered become one batch, where they would stay two.
"""

import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from superduper.errors import ChildDied, NotReady, SuperduperError, TimedOut, TooManyRequests
from superduper.serving.figures import Figures

WAIT_SHARE = 0.2
NEWEST_SHARE = 0.2  # of the newest batch in the running mean of what a batch takes

MAX_BATCH_SIZE = 64

Outcomes = list[dict[str, Any]]


class Host(Protocol):
    """Where batches run."""

    def predict(self, values: Sequence[Any], timeout: float | None = None) -> Outcomes: ...


Done = Callable[[Outcomes | Exception], None]
"""Is told what became of a request, in the batcher's thread; must not raise or block."""


@dataclass(slots=True, eq=False)
class Request:
    """Values that wait for their turn; `owner` is whose they are, for fairness."""

    values: Sequence[Any]
    deadline: float
    done: Done
    owner: str = ""
    cancelled: bool = False
    put_at: float = 0.0
    run_at: float = 0.0
    """When its batch began to run; 0 while it waits."""

    def cancel(self) -> None:
        """Nobody waits any more: if its turn has not come, it is not run."""
        self.cancelled = True


class _Queue:
    """Requests by owner: each owner in turn, so that one who sends much delays only himself."""

    def __init__(self) -> None:
        self._of_owner: OrderedDict[str, deque[Request]] = OrderedDict()
        self.count = 0
        self.rows = 0

    def put(self, request: Request) -> None:
        """Add one behind its owner's others."""
        waiting = self._of_owner.get(request.owner)
        if waiting is None:
            waiting = self._of_owner[request.owner] = deque()
        waiting.append(request)
        self.count += 1
        self.rows += len(request.values)

    def take(self, most_rows: int) -> list[Request]:
        """The requests that go next: as many as fit, and one at least."""
        batch: list[Request] = []
        rows = 0
        while self._of_owner:
            owner, waiting = next(iter(self._of_owner.items()))
            rows += len(waiting[0].values)
            if batch and rows > most_rows:
                break
            batch.append(waiting.popleft())
            self.count -= 1
            self.rows -= len(batch[-1].values)
            if waiting:
                self._of_owner.move_to_end(owner)
            else:
                del self._of_owner[owner]
        return batch


class Batcher:
    """Groups requests for one model host; its thread starts with the first request."""

    def __init__(
        self,
        host: Host,
        name: str,
        *,
        max_batch_size: int = MAX_BATCH_SIZE,
        max_wait_ms: float = 10.0,
        max_queue: int = 256,
        timeout: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        figures: Figures | None = None,
    ) -> None:
        self.figures = figures or Figures()
        self._host = host
        self._name = name
        self._max_rows = max_batch_size
        self._max_wait = max_wait_ms / 1000
        self._max_queue = max_queue
        self._timeout = timeout
        self._clock = clock
        self._waiting = _Queue()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._wanted = sys.maxsize
        self._alive_rows = 0
        self._last_end = 0.0
        self._mean_seconds = 0.0

    def submit(self, values: Sequence[Any], deadline: float) -> "Future[Outcomes]":
        """The outcomes of the values, to come; see `put`. Cancelling the future is heard."""
        future: Future[Outcomes] = Future()

        def done(result: Outcomes | Exception) -> None:
            if not future.set_running_or_notify_cancel():
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        request = Request(values, deadline, done)
        future.add_done_callback(lambda future: request.cancel() if future.cancelled() else None)
        self.put(request)
        return future

    def put(self, request: Request) -> None:
        """Have a request answered through its `done`.

        Its turn must come before its deadline, a time of the clock, else it gets TimedOut.
        That does not cut the run short: it would end a process which others need. It gets
        whatever running the model raises. Raises TooManyRequests if the queue is full, NotReady
        once closed.
        """
        with self._changed:
            if self._closed:
                raise NotReady(f"model {self._name!r} is being closed: try again in a moment")
            if self._waiting.count >= self._max_queue:
                raise TooManyRequests(
                    f"{self._waiting.count} requests are waiting for model {self._name!r}: "
                    "try again in a moment"
                )
            request.put_at = self._clock()
            self._waiting.put(request)
            is_enough = self._waiting.rows >= self._wanted
            if self._thread is None:
                name = f"batcher {self._name}"
                self._thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._thread.start()
            elif is_enough:  # else its thread is busy, or would wake up only to wait again
                self._changed.notify()

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return self._waiting.count

    def close(self, *, finish: bool = False) -> None:
        """Take no more requests; those that wait get NotReady, or with `finish` their answers.

        Returns when the batch in progress has been answered.
        """
        with self._changed:
            self._closed = True
            left = [] if finish else self._waiting.take(sys.maxsize)
            self._changed.notify()
            thread = self._thread
        self._fail(left, NotReady(f"model {self._name!r} has been closed"))
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
            answered = sum(len(request.values) for request in batch)
            self._alive_rows = answered + self._waiting.rows

    def _next_batch(self) -> list[Request]:
        """The requests that go next; none once closed and empty."""
        with self._changed:
            self._wanted = 0
            while not self._waiting.count and not self._closed:
                self._changed.wait()
            release = self._last_end + min(self._max_wait, WAIT_SHARE * self._mean_seconds)
            self._wanted = min(self._alive_rows, self._max_rows)
            while not self._closed and self._waiting.rows < self._wanted:
                left = release - self._clock()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._wanted = sys.maxsize
            return self._waiting.take(self._max_rows)

    def _run(self, batch: list[Request]) -> None:
        live = self._in_time([request for request in batch if not request.cancelled])
        queue, now = self.figures.stages["queue"], self._clock()
        for request in live:
            queue.add(now - request.put_at)
            request.run_at = now
        try:
            self._answer(live)
        except ChildDied as error:
            if len(live) == 1:
                self._fail(live, error)
                return
            for request in live:  # one of them ended the process: only that one gets the error
                self._answer_alone(request)
        except Exception as error:  # whatever it is, every caller must hear of it
            self._fail(live, error)

    def _in_time(self, requests: list[Request]) -> list[Request]:
        now = self._clock()
        text = f"the request waited too long for its turn at model {self._name!r}"
        late = [request for request in requests if request.deadline <= now]
        self._fail(late, TimedOut(text))
        return [request for request in requests if request.deadline > now]

    def _answer_alone(self, request: Request) -> None:
        live = self._in_time([request])
        try:
            self._answer(live)
        except Exception as error:
            self._fail(live, error)

    def _answer(self, requests: list[Request]) -> None:
        if not requests:
            return
        values = [value for request in requests for value in request.values]
        self.figures.rows.add(len(values))
        outcomes = self._host.predict(values, self._timeout)
        if len(outcomes) != len(values):
            raise SuperduperError(
                f"model {self._name!r} gave {len(outcomes)} outcomes for {len(values)} values"
            )
        start = 0
        for request in requests:
            stop = start + len(request.values)
            request.done(outcomes[start:stop])
            start = stop

    def _fail(self, requests: list[Request], error: Exception) -> None:
        self.figures.failed += len(requests)
        for request in requests:
            request.done(error)
