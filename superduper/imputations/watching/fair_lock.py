"""A lock that is had in the order of asking."""

import threading
from collections import deque
from typing import Self


class FairLock:
    """Lets one thread in at a time, whoever waits longest first.

    `threading.Lock` lets a thread that gives it back have it again at once, before those that wait.
    """

    def __init__(self) -> None:
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        turn = threading.Event()
        with self._lock:
            self._waiting.append(turn)
            if self._waiting[0] is turn:
                turn.set()
        turn.wait()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._waiting.popleft()
            if self._waiting:
                self._waiting[0].set()
