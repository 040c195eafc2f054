"""TensorBoard's event files: scalars by tag and step, written without TensorBoard.

A file is a row of records: length, its checksum, an `Event` message, its checksum. The messages
are small enough to be put together by hand: https://github.com/tensorflow/tensorboard.
"""

import os
import socket
import struct
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

_CASTAGNOLI = 0x82F63B78
_SESSION_START = b"\x3a\x02\x08\x01"


def _table() -> tuple[int, ...]:
    rows = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_CASTAGNOLI if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_ROWS = _table()


def masked_checksum(data: bytes) -> int:
    """CRC-32C, rotated and shifted as TensorFlow's record files have it."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _ROWS[(value ^ byte) & 0xFF] ^ value >> 8
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


class EventFile:
    """An event file of its own in a folder, begun with the first scalar.

    With `from_step`, TensorBoard forgets what earlier files of the folder have from that step on.
    """

    def __init__(self, folder: Path, from_step: int | None = None) -> None:
        stamp = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self.path = folder / f"events.out.tfevents.{stamp}"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("xb")
        self._record(_text(3, "brain.Event:2"))
        if from_step is not None:
            self._record(_whole(2, from_step) + _SESSION_START)

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Add values by tag."""
        values = b"".join(
            _part(1, _text(1, tag) + struct.pack("<Bf", 0x15, value))
            for tag, value in scalars.items()
        )
        self._record(_whole(2, step) + _part(5, values))
        self._file.flush()

    def close(self) -> None:
        """Nothing more is added."""
        self._file.close()

    def _record(self, event: bytes) -> None:
        event = struct.pack("<Bd", 0x09, time.time()) + event
        length = struct.pack("<Q", len(event))
        self._file.write(length + struct.pack("<I", masked_checksum(length)))
        self._file.write(event + struct.pack("<I", masked_checksum(event)))


def read_scalars(path: Path) -> Iterator[tuple[int, str, float]]:
    """Step, tag and value of every scalar in a file that `EventFile` wrote.

    Raises ValueError where a checksum is wrong.
    """
    data = path.read_bytes()
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = data[at + 12 : at + 12 + length]
        sums = (
            *struct.unpack_from("<I", data, at + 8),
            *struct.unpack_from("<I", data, at + 12 + length),
        )
        if sums != (masked_checksum(data[at : at + 8]), masked_checksum(event)):
            raise ValueError(f"{path} is damaged at byte {at}")
        yield from _scalars(event)
        at += 16 + length


def _scalars(event: bytes) -> Iterator[tuple[int, str, float]]:
    fields = dict(_fields(event))
    step = fields.get(2, 0)
    assert isinstance(step, int)
    summary = fields.get(5, b"")
    assert isinstance(summary, bytes)
    for _, value in _fields(summary):
        assert isinstance(value, bytes)
        parts = dict(_fields(value))
        tag, number = parts[1], parts[2]
        assert isinstance(tag, bytes) and isinstance(number, bytes)
        yield step, tag.decode(), struct.unpack("<f", number)[0]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        key, at = _read_whole(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _read_whole(message, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            size, at = _read_whole(message, at)
        yield number, message[at : at + size]
        at += size


def _read_whole(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _whole(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _part(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _part(field, text.encode())
