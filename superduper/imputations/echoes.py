"""Which changes are our own fills coming back, and so call for nothing."""

import threading
from collections.abc import Iterable

MOST_ECHOES = 200_000


class Echoes:
    """Fills of our own whose change events are still to come; for several threads."""

    def __init__(self) -> None:
        self._expected: set[tuple[str, bytes]] = set()
        self._lock = threading.Lock()

    def expect(self, fills: Iterable[tuple[str, bytes]]) -> None:
        """Fields and documents that are about to be written."""
        with self._lock:
            if len(self._expected) < MOST_ECHOES:
                self._expected.update(fills)

    def withdraw(self, fills: Iterable[tuple[str, bytes]]) -> None:
        """They may not have been written after all: whatever event comes is looked at."""
        with self._lock:
            self._expected.difference_update(fills)

    def heard(self, path: str, key: bytes) -> bool:
        """Whether this is the event of a fill of ours; true once for each."""
        with self._lock:
            if (path, key) not in self._expected:
                return False
            self._expected.remove((path, key))
            return True
