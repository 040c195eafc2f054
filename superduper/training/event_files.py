"""TensorBoard's event files, written without TensorBoard: scalars only.

A file is a row of records: length, its checksum, an `Event` message, its checksum. The few fields
of the message that are needed are laid out by hand.
"""

import itertools
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

_POLYNOMIAL = 0x82F63B78
_numbers = itertools.count()


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def masked_crc(data: bytes) -> int:
    """The checksum of a record: CRC-32C, rotated, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class EventFile:
    """An event file in a folder, created with the first scalar."""

    def __init__(self, folder: str | Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = Path(folder).expanduser()
        self.clock = clock
        self.path: Path | None = None

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        """Append values by tag; when this returns, other processes can read them."""
        summary = b"".join(
            _field(1, _field(1, tag.encode()) + _number(v)) for tag, v in values.items()
        )
        body = b"\x10" + _varint(step) + _field(5, summary)
        with self._open().open("ab") as file:
            file.write(_record(self._stamp() + body))

    def _open(self) -> Path:
        if self.path is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            host, number = socket.gethostname(), next(_numbers)
            name = f"events.out.tfevents.{int(self.clock()):010d}.{host}.{os.getpid()}.{number}"
            self.path = self.folder / name
            self.path.write_bytes(_record(self._stamp() + _field(3, b"brain.Event:2")))
        return self.path

    def _stamp(self) -> bytes:
        return b"\x09" + struct.pack("<d", self.clock())


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    sums = struct.pack("<I", masked_crc(length)), struct.pack("<I", masked_crc(data))
    return length + sums[0] + data + sums[1]


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _number(value: float) -> bytes:
    return b"\x15" + struct.pack("<f", value)
