"""Requests that come at the same time share one run of the model; see `batches` for which.

Here a thread runs the batches of a model. A server may run them in its event loop instead.
"""

import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from superduper.errors import ChildDied, NotReady, SuperduperError, TimedOut, TooManyRequests
from superduper.serving.batches import MAX_QUEUE, Batches, Outcomes, Request
from superduper.serving.blocks import join
from superduper.serving.figures import Figures


class Host(Protocol):
    """Where batches run."""

    def predict(self, values: Sequence[Any], timeout: float | None = None) -> Outcomes: ...


def submit(
    put: Callable[[Request], None], values: Sequence[Any], deadline: float
) -> "Future[Outcomes]":
    """The outcomes of values that are put as a request, to come; raises what `put` raises."""
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
    put(request)
    return future


class Runs:
    """Runs batches on a host, and tells each request what became of it."""

    def __init__(
        self, host: Host, name: str, timeout: float, clock: Callable[[], float], figures: Figures
    ) -> None:
        self._host = host
        self._name = name
        self._timeout = timeout
        self._clock = clock
        self._figures = figures

    def live(self, batch: list[Request]) -> list[Request]:
        """Those of a batch whose turn came in time and that somebody waits for still."""
        now = self._clock()
        late = [each for each in batch if each.deadline <= now and not each.cancelled]
        if late:
            text = f"the request waited too long for its turn at model {self._name!r}"
            self.fail(late, TimedOut(text))
        live = [each for each in batch if each.deadline > now and not each.cancelled]
        queue = self._figures.stages["queue"]
        for request in live:
            request.run_at = now
            queue.add(now - request.put_at)
        return live

    def values(self, live: list[Request]) -> Sequence[Any]:
        """Their values."""
        values = join([request.values for request in live])
        self._figures.rows.add(len(values))
        return values

    def run(self, live: list[Request], ask: Callable[[], Outcomes] | None = None) -> None:
        """Have a batch answered, by `ask` if somebody has asked already; may block."""
        try:
            if ask is None:
                self._answer(live)
            else:
                self.tell(live, ask())
        except (ChildDied, TimedOut) as error:
            self._answer_others(live, error)
        except Exception as error:  # whatever it is, every caller must hear of it
            self.fail(live, error)

    def _answer(self, live: list[Request]) -> None:
        if live:
            self.tell(live, self._host.predict(self.values(live), self._timeout))

    def _answer_others(self, live: list[Request], error: ChildDied | TimedOut) -> None:
        """One request of a batch has ended the process: only that one gets the error.

        If it is not known which, they are tried one by one; but not after a batch that took too
        long, where that would take as long for each.
        """
        guilty = live if len(live) == 1 else _request_at(live, error.position)
        if not guilty and isinstance(error, TimedOut):
            guilty = live
        self.fail(guilty, error)
        others = [request for request in live if request not in guilty]
        if guilty:
            self.run(self.live(others))
        else:
            for request in others:
                self._answer_alone(request)

    def _answer_alone(self, request: Request) -> None:
        live = self.live([request])
        try:
            self._answer(live)
        except Exception as error:
            self.fail(live, error)

    def tell(self, live: list[Request], outcomes: Outcomes) -> None:
        """Give each request its outcomes.

        Raises SuperduperError, and tells nobody, if there are too few or too many.
        """
        wanted = sum(len(request.values) for request in live)
        if len(outcomes) != wanted:
            raise SuperduperError(
                f"model {self._name!r} gave {len(outcomes)} outcomes for {wanted} values"
            )
        start = 0
        for request in live:
            stop = start + len(request.values)
            request.done(outcomes[start:stop])
            start = stop

    def fail(self, requests: list[Request], error: Exception) -> None:
        """Give each request an error."""
        self._figures.failed += len(requests)
        for request in requests:
            request.done(error)


def _request_at(live: list[Request], position: int | None) -> list[Request]:
    """The request whose value is at a position of a batch; none if that is not known."""
    if position is None:
        return []
    stops = itertools.accumulate(len(request.values) for request in live)
    return [each for each, stop in zip(live, stops, strict=True) if position < stop][:1]


class Batcher:
    """Groups requests for one model host; its thread starts with the first request."""

    def __init__(
        self,
        host: Host,
        name: str,
        *,
        max_queue: int = MAX_QUEUE,
        timeout: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        figures: Figures | None = None,
        **batching: Any,
    ) -> None:
        """`batching`: `max_batch_size` and `max_wait_ms`, see `Batches`."""
        self.figures = figures or Figures()
        self._name = name
        self._max_queue = max_queue
        self._clock = clock
        self._batches = Batches(**batching, timeout=timeout)
        self._runs = Runs(host, name, timeout, clock, self.figures)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._awaited = sys.maxsize

    def submit(self, values: Sequence[Any], deadline: float) -> "Future[Outcomes]":
        """The outcomes of the values, to come; see `put`. Cancelling the future is heard."""
        return submit(self.put, values, deadline)

    def put(self, request: Request) -> None:
        """Have a request answered through its `done`.

        Its turn must come before its deadline, a time of the clock, else it gets TimedOut.
        That does not cut the run short: it would end a process which others need. It gets
        whatever running the model raises. Raises TooManyRequests if the queue is full, NotReady
        once closed.
        """
        with self._lock:
            if self._closed:
                raise NotReady(f"model {self._name!r} is being closed: try again in a moment")
            if self._batches.count >= self._max_queue:
                raise TooManyRequests(
                    f"{self._batches.count} requests are waiting for model {self._name!r}: "
                    "try again in a moment"
                )
            request.put_at = self._clock()
            self._batches.put(request)
            self._look()

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return self._batches.count

    def close(self, *, finish: bool = False) -> None:
        """Take no more requests; those that wait get NotReady, or with `finish` their answers.

        Returns when the batch in progress has been answered.
        """
        with self._changed:
            self._closed = True
            left = [] if finish else self._batches.take_all()
            self._changed.notify_all()
        self._runs.fail(left, NotReady(f"model {self._name!r} has been closed"))
        self._wait_for_end()

    def _look(self) -> None:
        """A request has come."""
        if self._thread is None:
            name = f"batcher {self._name}"
            self._thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._thread.start()
        elif self._batches.rows >= self._awaited:
            self._changed.notify()  # else its thread is busy, or would wake up only to wait again

    def _wait_for_end(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            began, before = self._clock(), self.figures.worked
            self._runs.run(self._runs.live(batch))
            worked = self.figures.worked - before
            self._batches.note_end(batch, began, self._clock(), worked)

    def _next_batch(self) -> list[Request]:
        """The requests that go next; none once closed and empty."""
        with self._changed:
            self._awaited = 0
            while not self._batches.count and not self._closed:
                self._changed.wait()
            self._awaited = self._batches.wanted
            while not self._closed:
                left = self._batches.seconds_left(self._clock())
                if left <= 0:
                    break
                self._changed.wait(left)
            self._awaited = sys.maxsize
            return self._batches.take()
