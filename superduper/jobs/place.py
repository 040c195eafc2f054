"""Where a child is in its work: a number that its parent can still read when it has ended.

It is in a file of the child's folder that is mapped into its memory, so that saying it costs no
call and needs no other thread, whatever the code does that runs there. The parent reads the file
through a handle of its own: whatever a child does to it, it comes to a number or to none.
"""

import mmap
import os
import struct
from pathlib import Path

NAME = ".place"
NOWHERE = -1
_NUMBER = struct.Struct("=q")


class Place:
    """The child's side; without a folder it is told to nobody."""

    def __init__(self, folder: Path | None = None) -> None:
        self._number = _mapped(folder) if folder is not None else memoryview(bytearray(8)).cast("q")

    def put(self, number: int) -> None:
        """It is here now."""
        self._number[0] = number

    def clear(self) -> None:
        """It is nowhere in particular."""
        self._number[0] = NOWHERE


def _mapped(folder: Path) -> memoryview:
    with (folder / NAME).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), _NUMBER.size)).cast("q")


def make(folder: Path) -> int:
    """Make the file; answers a handle to read it by, which is to be closed."""
    handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(handle, _NUMBER.pack(NOWHERE))
    return handle


def read(handle: int) -> int | None:
    """The number that was put last; None if there is none."""
    found = os.pread(handle, _NUMBER.size, 0)
    if len(found) < _NUMBER.size:  # the child has cut it
        return None
    [number] = _NUMBER.unpack(found)
    return None if number < 0 else int(number)
