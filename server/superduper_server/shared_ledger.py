"""The ledger of several processes: a table in memory that they share.

A row is for one name: its hash, a value and its time, and a column for each process with what that
process holds, which nobody else writes. So what a killed process held can be given back by emptying
its column. Rows are taken and changed under a lock of the kernel's, which a killed process cannot
keep; one that was stopped can, until the hub ends it, and meanwhile nobody waits long for it.
"""

import fcntl
import mmap
import os
import tempfile
import time
from hashlib import blake2b

import numpy as np

from superduper.errors import NotReady, TooManyRequests
from superduper_server.ledger import REMEMBERED

ROWS = 1 << 15
PROBES = 8
KEY, VALUE, AT, HELD = range(4)
WORD_BYTES = 8
# It is had for microseconds: who has it for longer does not run.
PATIENCE_SECONDS = 0.25
LITTLE_PATIENCE_SECONDS = 0.002
TRY_SECONDS = 0.0002


class SharedLedger:
    """One process's view of the table; `column` (from 0) is its own of `columns`."""

    def __init__(self, file: int, column: int, columns: int) -> None:
        """`file` is the number of what `make_file` made; it stays the caller's."""
        self._file = file
        self._width = HELD + columns
        self._column = column
        memory = mmap.mmap(file, ROWS * self._width * WORD_BYTES)
        self._whole = memoryview(memory).cast("q")
        self._real = memoryview(memory).cast("B").cast("d")
        self._table = np.frombuffer(memory, "<i8").reshape(ROWS, self._width)
        self._keys: dict[str, tuple[int, int]] = {}
        self._patience = PATIENCE_SECONDS

    def __enter__(self) -> None:
        """Raises NotReady if another process keeps the lock; the event loop must go on."""
        deadline = time.monotonic() + self._patience
        while not self._lock():
            if time.monotonic() > deadline:
                self._patience = LITTLE_PATIENCE_SECONDS
                raise NotReady("a process of this server does not go on: try again in a moment")
            time.sleep(TRY_SECONDS)
        self._patience = PATIENCE_SECONDS

    def _lock(self) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def held(self, name: str) -> int:
        """How much is held by all processes."""
        start = self._find(name)
        if start is None:
            return 0
        return sum(self._whole[start + HELD : start + self._width])

    def held_by(self, name: str, column: int) -> int:
        """How much is held by one."""
        start = self._find(name)
        return 0 if start is None else self._whole[start + HELD + column]

    def hold(self, name: str, more: int) -> None:
        """Hold more. Raises TooManyRequests if there is no room to count it."""
        start = self._find(name)
        if start is None:
            start = self._take(name)
        self._whole[start + HELD + self._column] += more

    def note(self, name: str) -> tuple[float, float] | None:
        """The value that was noted last, and when."""
        start = self._find(name)
        if start is None or not self._real[start + AT]:
            return None
        return self._real[start + VALUE], self._real[start + AT]

    def write(self, name: str, value: float, at: float) -> None:
        """Note a value. Raises TooManyRequests if there is no room for it."""
        start = self._find(name)
        if start is None:
            start = self._take(name)
        self._real[start + VALUE], self._real[start + AT] = value, at

    def empty(self, column: int) -> None:
        """Nothing is held by a process any more: it has ended."""
        self._table[:, HELD + column] = 0

    def _find(self, name: str) -> int | None:
        """Where the row of a name begins; None if it has none."""
        key, start = self._place(name)
        if self._whole[start] == key:
            return start
        for start in self._starts(key):
            if self._whole[start] == key:
                self._keys[name] = key, start
                return start
        return None

    def _place(self, name: str) -> tuple[int, int]:
        """The hash of a name, never 0, and where its row was last."""
        known = self._keys.get(name)
        if known is None:
            digest = blake2b(name.encode(), digest_size=WORD_BYTES).digest()
            key = int.from_bytes(digest, signed=True) or 1
            if len(self._keys) >= REMEMBERED:
                self._keys.clear()
            known = self._keys[name] = key, next(iter(self._starts(key)))
        return known

    def _starts(self, key: int) -> range:
        first = key % (ROWS - PROBES)
        return range(first * self._width, (first + PROBES) * self._width, self._width)

    def _take(self, name: str) -> int:
        """A row for a name that has none: a free one, or the oldest of which nothing is held."""
        key, _ = self._place(name)
        free = [
            start
            for start in self._starts(key)
            if not any(self._whole[start + HELD : start + self._width])
        ]
        if not free:
            raise TooManyRequests("too many different clients at once: try again in a moment")
        start = min(free, key=lambda start: self._real[start + AT])
        for word in range(self._width):
            self._whole[start + word] = 0
        self._whole[start + KEY] = key
        self._keys[name] = key, start
        return start


def make_file(columns: int) -> int:
    """The number of a file in memory for a table with so many columns; it has no name."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("superduper-ledger")
    else:
        with tempfile.TemporaryFile() as made:
            file = os.dup(made.fileno())
    os.ftruncate(file, ROWS * (HELD + columns) * WORD_BYTES)
    return file
