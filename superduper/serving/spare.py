"""A second child with a model loaded, while a model's child ends again and again.

Who predicts for documents that kill the model does not wait for a new process each time: one is
made ready while the last one works. It takes the model's memory once more, so there is one only
after a death, and for a while.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from superduper.errors import SuperduperError

logger = logging.getLogger(__name__)

#: It is let go if it is not needed for so long.
KEEP_SECONDS = 60.0

T = TypeVar("T")


class Spare(Generic[T]):
    """One that is being made, is ready, or is not there. Safe for several threads.

    `make` makes one and may raise a SuperduperError; `end` ends one that is not needed.
    """

    def __init__(self, name: str, make: Callable[[], T], end: Callable[[T], Any]) -> None:
        self._name = name
        self._make = make
        self._end = end
        self._lock = threading.Lock()
        self._making: _Making[T] | None = None

    def prepare(self) -> None:
        """Begin to make one, if there is none; does not wait."""
        with self._lock:
            if self._making is None or self._making.over:
                self._making = _Making(self._name, self._make, self._end)
                self._making.start()

    def take(self) -> T | None:
        """The one that is there, or is being made; None if there is none, or making it failed."""
        making = self._hand_over()
        return making.take() if making is not None else None

    @property
    def is_ready(self) -> bool:
        """Whether it would be had at once."""
        with self._lock:
            return self._making is not None and self._making.is_ready

    def drop(self) -> None:
        """Let it go; one that is being made ends as soon as it is made."""
        making = self._hand_over()
        if making is not None:
            making.drop()

    def _hand_over(self) -> "_Making[T] | None":
        with self._lock:
            making, self._making = self._making, None
        return making


class _Making(threading.Thread, Generic[T]):
    """Makes one and holds it until it is taken, or for a while."""

    def __init__(self, name: str, make: Callable[[], T], end: Callable[[T], Any]) -> None:
        super().__init__(name=f"spare {name}", daemon=True)
        self._make = make
        self._end = end
        self._lock = threading.Lock()
        self._made = threading.Event()
        self._decided = threading.Event()
        self._ready: T | None = None
        self.over = False

    def run(self) -> None:
        """Make it; end it again if nobody takes it."""
        try:
            made = self._make()
        except SuperduperError as error:  # who needs one makes it, and is told
            logger.info("%s: none can be made just now: %s", self.name, error.message)
            self.over = True
        else:
            with self._lock:
                self._ready = made
        self._made.set()
        if not self._decided.wait(KEEP_SECONDS) or self.over:
            self._let_go()

    @property
    def is_ready(self) -> bool:
        return self._made.is_set() and not self.over

    def take(self) -> T | None:
        self._made.wait()
        with self._lock:
            ready, self._ready, self.over = self._ready, None, True
        self._decided.set()
        return ready

    def drop(self) -> None:
        self.over = True
        self._decided.set()
        self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            ready, self._ready, self.over = self._ready, None, True
        if ready is not None:
            self._end(ready)
