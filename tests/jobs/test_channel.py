"""What goes through a channel arrives as it was, and a block is not copied on the way."""

import socket
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import bson
import pytest

from superduper.errors import TooLarge
from superduper.jobs import channel
from superduper.jobs.channel import BrokenFrame, Channel, encode

LARGE = 16 << 20


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def sent(ends: tuple[socket.socket, socket.socket], *messages: Any) -> list[Any]:
    """What arrives of messages that are sent one after the other."""
    near, far = (Channel(end) for end in ends)
    thread = threading.Thread(target=lambda: [near.send(message) for message in messages])
    thread.start()
    received = [far.receive() for _ in messages]
    thread.join(30)
    assert all(message is not None for message in received)
    return received


@pytest.mark.parametrize("size", [1, 1000, channel.JOINED_BYTES, channel.CHUNK_BYTES, LARGE + 3])
@pytest.mark.parametrize("parts", [1, 3, 2000])
def test_a_block_arrives_whole_and_beside_other_messages(
    ends: tuple[socket.socket, socket.socket], size: int, parts: int
) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    step = -(-size // parts)
    block = [memoryview(data)[start : start + step] for start in range(0, size, step)]
    first, message, last = sent(ends, {"n": 1}, {"n": 2, "block": block}, {"n": 3})
    assert (first, last) == ({"n": 1}, {"n": 3})
    assert message.keys() == {"n", "block"} and message["n"] == 2
    assert bytes(message["block"]) == data


def test_a_block_of_nothing_is_still_there(ends: tuple[socket.socket, socket.socket]) -> None:
    assert sent(ends, {"block": b""}) == [{"block": b""}]


def test_a_large_block_is_copied_by_neither_end(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    block = memoryview(bytes(LARGE))
    tracemalloc.start()
    try:
        [message] = sent(ends, {"block": [block[: LARGE // 2], block[LARGE // 2 :]]})
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(message["block"]) == LARGE
    message["block"][0] = 1  # it is the receiver's own
    assert most < 1 << 20  # the buffer that it is received into is not Python's, and not counted


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("<I", 4) + b"\4\0\0\0",
        struct.pack("<I", 5) + bson.encode({"a": 1}),  # a document that is longer than its frame
        struct.pack("<I", 2**31) + bson.encode({}),
        struct.pack("<I", 1000) + bson.encode({}) + b"too short",
        encode({"a": 1}),
    ],
)
def test_what_is_no_message(ends: tuple[socket.socket, socket.socket], frame: bytes) -> None:
    near, far = ends
    near.sendall(frame)
    near.close()
    with pytest.raises(BrokenFrame):
        Channel(far).receive()


def test_more_than_a_frame_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_BYTES", 1000)
    with pytest.raises(TooLarge):
        channel.frame({"block": bytes(1001)})
