"""Vectors of float32 in one block: what most requests send, and most models give back.

As sequences they are what lists of the single values would be, so that only who wants to be quick
need know of the block.
"""

from collections.abc import Iterator, Sequence
from typing import Any, overload

from bson.binary import VECTOR_SUBTYPE, Binary

Buffer = bytes | bytearray | memoryview
HEAD = b"\x27\x00"  # of a stored vector of float32
BYTES_PER_FLOAT = 4


class Vectors(Sequence[Binary]):
    """Vectors of one length, one after the other, little-endian; an item is as a document has it.

    `parts` are their bytes, in as many buffers as they came in, `width` (at least 1) how many
    floats each has. `texts` is for who writes all of them at once, because they were one batch,
    and then answers one request after the other.
    """

    __slots__ = ("parts", "texts", "width")

    def __init__(self, data: Buffer, width: int, *more: Buffer) -> None:
        self.parts: tuple[Buffer, ...] = (data, *more)
        self.width = width
        self.texts: list[bytes] | None = None

    @property
    def data(self) -> Buffer:
        """All the bytes in one buffer, which they are put into now if they are in several."""
        if len(self.parts) > 1:
            self.parts = (b"".join(self.parts),)
        return self.parts[0]

    @property
    def row_bytes(self) -> int:
        """The size of one."""
        return BYTES_PER_FLOAT * self.width

    def __len__(self) -> int:
        return sum(map(len, self.parts)) // self.row_bytes

    @overload
    def __getitem__(self, index: int) -> Binary: ...
    @overload
    def __getitem__(self, index: slice) -> "Vectors": ...
    def __getitem__(self, index: int | slice) -> "Binary | Vectors":
        size = self.row_bytes
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError("vectors in a block are taken in a row, one after the other")
            return Vectors(memoryview(self.data)[start * size : stop * size], self.width)
        [index] = [range(len(self))[index]]
        return Binary(HEAD + self.data[index * size : (index + 1) * size], VECTOR_SUBTYPE)

    def __iter__(self) -> Iterator[Binary]:
        size = self.row_bytes
        data = self.data
        for start in range(0, len(data), size):
            yield Binary(HEAD + data[start : start + size], VECTOR_SUBTYPE)


def join(parts: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """The values of several requests in one sequence, in a block if they are such vectors."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if type(first) is Vectors:
        width = first.width
        if all(type(part) is Vectors and part.width == width for part in parts):
            first, *more = [buffer for part in parts for buffer in part.parts]  # type: ignore[attr-defined]
            return Vectors(first, width, *more)
    return [value for part in parts for value in part]


class VectorOutcomes(Sequence[dict[str, Any]]):
    """Outcomes that are nothing but such vectors: those of a batch, or a part of them."""

    __slots__ = ("block", "start", "stop")

    def __init__(self, block: Vectors, start: int = 0, stop: int | None = None) -> None:
        self.block = block
        self.start = start
        self.stop = len(block) if stop is None else stop

    def __len__(self) -> int:
        return self.stop - self.start

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "VectorOutcomes": ...
    def __getitem__(self, index: int | slice) -> "dict[str, Any] | VectorOutcomes":
        if isinstance(index, slice):
            start, stop, step = index.indices(self.stop - self.start)
            if step != 1:
                raise ValueError("outcomes in a block are taken in a row, one after the other")
            return VectorOutcomes(self.block, self.start + start, self.start + stop)
        return {"value": self.block[range(self.start, self.stop)[index]]}
