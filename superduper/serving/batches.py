"""Which requests that wait make the next batch, and when it may go: no threads, no clock.

A lone request never waits. After a batch the next one waits at most a fifth of what a batch takes,
and no longer than until as many rows are there as were in the last one and waited beside it. So
callers that ask again as soon as they are answered become one batch, where they would stay two.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WAIT_SHARE = 0.2
NEWEST_SHARE = 0.2  # of the newest batch in the running mean of what a batch takes
TIME_SHARE = 0.5
"""Of the time that a batch may take: it takes no more rows than were last done in so much of it."""

MAX_BATCH_SIZE = 64
MAX_WAIT_MS = 10.0
MAX_QUEUE = 256

Outcomes = Sequence[dict[str, Any]]
Done = Callable[[Outcomes | Exception], None]
"""Is told what became of a request; must not raise or block."""


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
    on_cancel: Callable[[], None] | None = None
    """Is told that it was cancelled: for who has passed it on; must not raise or block."""

    def cancel(self) -> None:
        """Nobody waits any more: if its turn has not come, it is not run."""
        self.cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()


class Batches:
    """Requests by owner: each owner in turn, so that one who sends much delays only himself."""

    def __init__(
        self,
        max_batch_size: int = MAX_BATCH_SIZE,
        max_wait_ms: float = MAX_WAIT_MS,
        timeout: float = math.inf,
    ) -> None:
        """`timeout`: the seconds after which a batch is given up."""
        self._max_rows = max_batch_size
        self._affordable = float(max_batch_size)
        self._seconds = TIME_SHARE * timeout
        self._max_wait = max_wait_ms / 1000
        self._of_owner: OrderedDict[str, deque[Request]] = OrderedDict()
        self._alive_rows = 0
        self._last_end = 0.0
        self._mean_seconds = 0.0
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

    @property
    def wanted(self) -> int:
        """The rows that the next batch is worth waiting for."""
        return min(self._alive_rows, self._most_rows)

    @property
    def _most_rows(self) -> int:
        return max(1, int(min(self._max_rows, self._affordable)))

    @property
    def is_full(self) -> bool:
        """Whether it waits for no more."""
        return self.rows >= self.wanted

    def seconds_left(self, now: float) -> float:
        """How long the requests that are there still wait for others; not positive if they go."""
        if self.is_full:
            return 0.0
        return self._last_end + min(self._max_wait, WAIT_SHARE * self._mean_seconds) - now

    def take(self) -> list[Request]:
        """The requests that go next: as many as fit in a batch, one at least if there is any."""
        batch: list[Request] = []
        rows = 0
        while self._of_owner:
            owner, waiting = next(iter(self._of_owner.items()))
            rows += len(waiting[0].values)
            if batch and rows > self._most_rows:
                break
            batch.append(waiting.popleft())
            if not waiting:
                del self._of_owner[owner]
            elif len(self._of_owner) > 1:
                self._of_owner.move_to_end(owner)
        self.count -= len(batch)
        self.rows -= sum(len(request.values) for request in batch)
        return batch

    def take_all(self) -> list[Request]:
        """Every request that waits."""
        left = [request for waiting in self._of_owner.values() for request in waiting]
        self._of_owner.clear()
        self.count = self.rows = 0
        return left

    def note_end(self, batch: list[Request], began: float, ended: float, worked: float) -> None:
        """A batch that was taken has been answered.

        `worked`: the seconds that the model took for it, without the start of its process; 0 if
        that is not known.
        """
        newest = NEWEST_SHARE if self._mean_seconds else 1.0
        self._mean_seconds += newest * (ended - began - self._mean_seconds)
        self._last_end = ended
        rows = sum(len(request.values) for request in batch)
        self._alive_rows = rows + self.rows
        if rows and worked:
            self._affordable = rows * self._seconds / worked
