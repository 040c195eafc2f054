"""Let others have the interpreter sooner while a thread does something long beside them.

Python lets a thread run for 5 ms before another one has its turn. A server's loop, which answers,
would wait that long each time while a version is looked up and loaded. To have short turns all the
time costs large JSON bodies, which several threads read at once, a sixth more of the processor.
"""

import sys
import threading
from contextlib import AbstractContextManager

TURN_SECONDS = 0.001


class _GivingWay(AbstractContextManager[None]):
    """Turns are short from when the first thread comes in until the last one has left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._usual = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(min(self._usual, TURN_SECONDS))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                sys.setswitchinterval(self._usual)


giving_way = _GivingWay()
