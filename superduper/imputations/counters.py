"""What a process has done since it was last asked, by name."""

import threading
from collections import Counter


class Counters:
    """What was done, by name; for several threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Count something that happened."""
        if count:
            with self._lock:
                self._counts[name] += count

    def take(self) -> dict[str, int]:
        """All counts since they were last taken."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return dict(counts)
