"""Tensors of one datatype and shape in one block: what most requests send, and models give back.

As sequences they are what lists of the single values would be, so that only who wants to be quick
need know of the block.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, overload

from bson.binary import VECTOR_SUBTYPE, Binary

from superduper.errors import InvalidInput
from superduper.fields import tensors

Buffer = bytes | bytearray | memoryview
HEAD = b"\x27\x00"  # of a stored vector of float32
BYTES_PER_FLOAT = 4
KINDS = (None, "torch", "numpy")


@dataclass(frozen=True)
class Layout:
    """What the tensors of a block have in common, each as a document would tell it.

    No size in `shape` is 0. `kind` is the library whose arrays they are; None if nobody has said.
    `layout_of` keeps those that are used, with what is worked out of them.
    """

    dtype: str
    shape: tuple[int, ...]
    kind: str | None

    @cached_property
    def is_floats(self) -> bool:
        """Whether they are vectors of float32."""
        return self.dtype == "float32" and len(self.shape) == 1

    @cached_property
    def row_bytes(self) -> int:
        """The size of one."""
        return tensors.ITEM_SIZES[self.dtype] * math.prod(self.shape)

    @cached_property
    def text(self) -> str:
        """The layout as it travels; see `layout_in`."""
        return " ".join([self.dtype, self.kind or "", *map(str, self.shape)])

    def stored(self, data: Buffer) -> Any:
        """A tensor of these bytes as a document has it."""
        if self.is_floats:
            return Binary(HEAD + data, VECTOR_SUBTYPE)
        told = {"dtype": self.dtype, "shape": list(self.shape), "data": bytes(data)}
        return tensors.as_stored(told if self.kind is None else {**told, "kind": self.kind})


@lru_cache(maxsize=1024)
def layout_of(dtype: str, shape: tuple[int, ...], kind: str | None = "torch") -> Layout:
    """The layout of tensors of a datatype and shape."""
    return Layout(dtype, shape, kind)


@lru_cache(maxsize=1024)
def layout_in(text: str) -> Layout:
    """The layout that has travelled as a text."""
    dtype, kind, *sizes = text.split(" ")
    return layout_of(dtype, tuple(map(int, sizes)), kind or None)


def floats(width: int) -> Layout:
    """The layout of vectors of float32."""
    return layout_of("float32", (width,))


class Block(Sequence[Any]):
    """Tensors one after the other, little-endian; an item is as a document has it.

    `parts` are their bytes, in as many buffers as they came in, none of which ends within a
    tensor's. `texts` is for who writes all of them at once, because they were one batch, and then
    answers one request after the other.
    """

    __slots__ = ("_count", "layout", "parts", "row_bytes", "texts")

    def __init__(self, layout: Layout, *parts: Buffer) -> None:
        self.parts: tuple[Buffer, ...] = parts
        self.layout = layout
        self.row_bytes = layout.row_bytes
        self.texts: list[bytes] | None = None
        self._count = sum(map(len, parts)) // self.row_bytes

    @property
    def data(self) -> Buffer:
        """All the bytes in one buffer, which they are put into now if they are in several."""
        if len(self.parts) > 1:
            self.parts = (b"".join(self.parts),)
        return self.parts[0]

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> "Block": ...
    def __getitem__(self, index: int | slice) -> Any:
        size = self.row_bytes
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError("tensors in a block are taken in a row, one after the other")
            return Block(self.layout, memoryview(self.data)[start * size : stop * size])
        [index] = [range(len(self))[index]]
        return self.layout.stored(self.data[index * size : (index + 1) * size])

    def __iter__(self) -> Iterator[Any]:
        size = self.row_bytes
        data = self.data
        for start in range(0, len(data), size):
            yield self.layout.stored(data[start : start + size])


def join(parts: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """The values of several requests in one sequence, in a block if they are such tensors."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if type(first) is Block:
        layout = first.layout
        if all(type(part) is Block and part.layout == layout for part in parts):
            return Block(layout, *[buffer for part in parts for buffer in part.parts])  # type: ignore[attr-defined]
    return [value for part in parts for value in part]


def of_stored(values: Sequence[Any]) -> Sequence[Any]:
    """Stored values as a block, if all are sound tensors of one layout; else as they are."""
    parts: list[Buffer] = []
    first = None
    for value in values:
        found = _tensor_in(value)
        if found is None or first not in (None, found[0]):
            return values
        first = found[0]
        parts.append(found[1])
    return values if first is None else Block(first, *parts)


def _tensor_in(value: Any) -> tuple[Layout, Buffer] | None:
    """Layout and bytes of a stored tensor that has some and would be stored so again."""
    try:
        if tensors.is_vector(value):
            dtype, count, data = tensors.read_vector(value)
            return (layout_of(dtype, (count,)), data) if data and dtype != "bool" else None
        if not isinstance(value, Mapping) or not tensors.is_tensor_document(value):
            return None
        tensors.check_tensor_document(value)
    except InvalidInput:
        return None
    kind = value.get("kind")
    if kind not in KINDS:
        return None
    found = layout_of(value["dtype"], tuple(value["shape"]), kind)
    is_sound = found.row_bytes and found.stored(value["data"]) == value
    return (found, value["data"]) if is_sound else None


def pack(block: Block) -> dict[str, Any]:
    """A block as it travels in a message."""
    return {"block": block.parts, "layout": block.layout.text}


def unpack(message: dict[str, Any]) -> Block | None:
    """The block that has travelled in a message; None if there is none in it."""
    if "layout" not in message:
        return None
    return Block(layout_in(message["layout"]), message["block"])


class BlockOutcomes(Sequence[dict[str, Any]]):
    """Outcomes that are nothing but such tensors: those of a batch, or a part of them."""

    __slots__ = ("block", "start", "stop")

    def __init__(self, block: Block, start: int = 0, stop: int | None = None) -> None:
        self.block = block
        self.start = start
        self.stop = len(block) if stop is None else stop

    def __len__(self) -> int:
        return self.stop - self.start

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "BlockOutcomes": ...
    def __getitem__(self, index: int | slice) -> "dict[str, Any] | BlockOutcomes":
        if isinstance(index, slice):
            start, stop, step = index.indices(self.stop - self.start)
            if step != 1:
                raise ValueError("outcomes in a block are taken in a row, one after the other")
            return BlockOutcomes(self.block, self.start + start, self.start + stop)
        return {"value": self.block[range(self.start, self.stop)[index]]}

    @property
    def whole(self) -> Block:
        """Their tensors alone."""
        return self.block[self.start : self.stop]
