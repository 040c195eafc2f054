"""Messages between a worker and the child process that runs user code: BSON over a socket.

A frame is the length as 4 bytes, little-endian, then one BSON document, then its block if there
is one. Values may be anything that BSON knows, raw documents included; there is no limit of 16 MB,
only BSON's own of 2 GiB. A block is the message's field of that name: bytes, or several buffers in
a row, which would be copied on their way into BSON and out of it; a small one is a value in the
document, which is cheaper. It arrives as one buffer.
A child answers each request with `{"ok": {...}}` or `{"error": {code, type, message, traceback}}`;
before that it may send any number of `{"event": {...}}`.
"""

import contextlib
import mmap
import select
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, cast

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion

from superduper.errors import InvalidInput, SuperduperError, TooLarge, UserCodeError

MAX_BYTES = 2**31 - 1
CHUNK_BYTES = 1 << 20
HEAD_BYTES = 4
JOINED_BYTES = 1 << 16
"""A frame up to here is sent and received in one piece; larger ones are not put together first."""
MOST_PARTS = 512
"""Of a frame that is sent in parts; the system takes 1024."""
BLOCK = "block"
MESSAGE_CHARACTERS = 4_000
TRACEBACK_CHARACTERS = 16_000

Message = dict[str, Any]
Buffer = bytes | bytearray | memoryview
Wait = Callable[[int], None]
Handler = Callable[[Message], Mapping[str, Any]]

# UUIDs go in as Python has them and come out as the `Binary` that pymongo gives by default; dates
# that Python cannot show stay milliseconds instead of failing.
_HEAD = struct.Struct("<I")
_WRITING: CodecOptions[Any] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)
_READING: CodecOptions[Any] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)


class BrokenFrame(Exception):
    """The other end sent something that is not a message."""


class ChannelClosed(Exception):
    """The other end is closed: nobody would get the message."""


class ChildError(UserCodeError):
    """User code raised an exception in a child; type, text and traceback as the child told them."""

    def __init__(self, message: str, *, type: str, text: str, traceback: str) -> None:
        super().__init__(message)
        self.type = type
        self.text = text
        self.traceback = traceback


def frame(message: Mapping[str, Any]) -> list[memoryview]:
    """What is to be sent for a message, in parts.

    Raises InvalidInput or TooLarge as `encode` does.
    """
    blocks: list[Buffer] = []
    if (block := message.get(BLOCK)) is not None:
        blocks = list(block) if isinstance(block, list | tuple) else [block]
    size = sum(map(len, blocks))
    if size > JOINED_BYTES:
        message = {name: value for name, value in message.items() if name != BLOCK}
    elif blocks:
        message, blocks, size = {**message, BLOCK: b"".join(blocks)}, [], 0
    body = encode(message)
    if not size and len(body) <= JOINED_BYTES:  # as most are
        return [memoryview(_HEAD.pack(len(body)) + body)]
    if len(body) + size > MAX_BYTES:
        raise TooLarge("a message between processes must be smaller than 2 GiB")
    parts = [_HEAD.pack(len(body) + size), body, *blocks]
    if len(parts) > MOST_PARTS:
        parts = [b"".join(parts)]
    return [memoryview(part) for part in parts]


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as BSON.

    Raises InvalidInput if a value has no place in BSON, TooLarge from 2 GiB on.
    """
    try:
        body = bson.encode(message, codec_options=_WRITING)
    except (bson.errors.BSONError, OverflowError, ValueError, RecursionError) as error:
        if "size limit" in str(error) or str(MAX_BYTES) in str(error):
            raise TooLarge("a message between processes must be smaller than 2 GiB") from error
        raise InvalidInput(f"a message cannot be encoded: {error}") from error
    if len(body) > MAX_BYTES:
        raise TooLarge("a message between processes must be smaller than 2 GiB")
    return body


def decode(body: bytes | memoryview) -> Message:
    """The message in a frame's body.

    Raises BrokenFrame if there is none.
    """
    try:
        return cast(Message, bson.decode(body, codec_options=_READING))
    except (bson.errors.BSONError, RecursionError) as error:
        raise BrokenFrame(f"a frame that is not BSON: {error}") from error


class _Coming:
    """A message whose block is on its way, and where the rest of that goes."""

    __slots__ = ("block", "message", "room")

    def __init__(self, message: Message, block: memoryview) -> None:
        self.message = message
        self.block = self.room = block


def _room(size: int) -> bytearray | mmap.mmap:
    """Memory for a block; where that is much, the system gives it page by page as it is filled."""
    if size <= CHUNK_BYTES:
        return bytearray(size)
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Channel:
    """One end of the socket.

    `send` may be called from several threads, `receive` from one. With `wait` the socket is
    non-blocking and `wait(select.POLLIN or POLLOUT)` blocks until it is ready, or raises.
    """

    def __init__(
        self, connection: socket.socket, *, max_bytes: int = MAX_BYTES, wait: Wait | None = None
    ) -> None:
        self._socket = connection
        self._max_bytes = max_bytes
        self._wait = wait
        self._sending = threading.Lock()
        self._received: bytes | bytearray = b""
        self._coming: _Coming | None = None
        self._unsent: list[memoryview] = []
        self._left: Message | None = None

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message.

        Raises InvalidInput or TooLarge before anything is sent, ChannelClosed if nobody listens.
        """
        self.send_framed(frame(message))

    def send_framed(self, parts: list[memoryview]) -> None:
        """Send what `frame` made."""
        with self._sending:
            self._write(parts)

    def receive(self) -> Message | None:
        """The next message; None once the other end is closed.

        Raises BrokenFrame for anything but a whole, well-formed message of the allowed size.
        """
        left, self._left = self._left, None
        while (message := left or self._take()) is None:
            if self._wait is not None:
                self._wait(select.POLLIN)
            try:
                if not self._fill():
                    return None
            except BlockingIOError:
                continue
        return message

    # Without waiting, for a socket that does not block ---------------------------------------

    def begin(self, parts: list[memoryview]) -> None:
        """Send as much as there is room for of what `frame` made.

        `push` sends more of it, `finish` the rest. Raises ChannelClosed if nobody listens.
        """
        with self._sending:
            self._unsent = self._send_some(parts)

    def push(self) -> bool:
        """Send as much as there is room for of what is left; whether that was all.

        Raises ChannelClosed if nobody listens.
        """
        with self._sending:
            if self._unsent:
                self._unsent = self._send_some(self._unsent)
            return not self._unsent

    def finish(self) -> None:
        """Send what `begin` and `push` left."""
        with self._sending:
            left, self._unsent = self._unsent, []
            self._write(left)

    def receive_now(self) -> Message | None:
        """The next message if it is there and answers a request; else it is left to `receive`.

        Raises ChannelClosed, and BrokenFrame as `receive` does; so does the next call.
        """
        with contextlib.suppress(BlockingIOError):
            if not self._fill():
                raise ChannelClosed("it closed its channel")
        message = self._take()
        if message is None or is_answer(message):
            return message
        self._left = message
        return None

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def _write(self, parts: list[memoryview]) -> None:
        while parts:
            if self._wait is not None:
                self._wait(select.POLLOUT)
            parts = self._send_some(parts)

    def _send_some(self, parts: list[memoryview]) -> list[memoryview]:
        """Send what there is room for; the rest."""
        try:
            sent = self._socket.sendmsg(parts) if len(parts) > 1 else self._socket.send(parts[0])
        except BlockingIOError:
            return parts
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed("the other end is closed") from error
        for number, part in enumerate(parts):
            if sent < len(part):
                return [part[sent:], *parts[number + 1 :]]
            sent -= len(part)
        return []

    def _fill(self) -> bool:
        """Take in what has arrived; False if the other end is closed.

        What is kept grows with what arrives: a length alone makes nobody fill 2 GiB.
        """
        coming = self._coming
        try:
            if coming is not None:
                count = self._socket.recv_into(coming.room)
                coming.room = coming.room[count:]
            else:
                chunk = self._socket.recv(CHUNK_BYTES if self._received else JOINED_BYTES)
                self._keep(chunk)
                count = len(chunk)
        except ConnectionResetError:  # the other end closed without reading all we sent
            count = 0
        if not count and (coming is not None or self._received):
            raise BrokenFrame("the connection ended in the middle of a frame")
        return count > 0

    def _keep(self, chunk: bytes) -> None:
        if not self._received:
            self._received = chunk  # most often a whole frame
            return
        if isinstance(self._received, bytes):
            self._received = bytearray(self._received)
        self._received += chunk

    def _drop(self, count: int) -> None:
        """Forget the first bytes of what was received."""
        if count == len(self._received):
            self._received = b""
            return
        if isinstance(self._received, bytes):
            self._received = bytearray(self._received)
        del self._received[:count]

    def _take(self) -> Message | None:
        """The first message of what was received, if it is whole."""
        if self._coming is None:
            message = self._take_document()
            if self._coming is None:
                return message
        if self._coming.room:
            return None
        coming, self._coming = self._coming, None
        return {**coming.message, BLOCK: coming.block}

    def _take_document(self) -> Message | None:
        """The first message without a block; one that has a block is `_coming` then."""
        received = self._received
        if len(received) < HEAD_BYTES:
            return None
        size = int.from_bytes(received[:HEAD_BYTES], "little")
        if not 5 <= size <= self._max_bytes:
            raise BrokenFrame(f"a frame of {size} bytes: from 5 to {self._max_bytes} are allowed")
        if len(received) < 2 * HEAD_BYTES:
            return None
        own = int.from_bytes(received[HEAD_BYTES : 2 * HEAD_BYTES], "little")  # a document's own
        if not 5 <= own <= size:
            raise BrokenFrame(f"a document of {own} bytes in a frame of {size}")
        end = HEAD_BYTES + own
        if len(received) < end:
            return None
        with memoryview(received) as view, view[HEAD_BYTES:end] as body:
            message = decode(body)
        if size == own:
            self._drop(end)
            return message
        self._coming = coming = _Coming(message, memoryview(_room(size - own)))
        here = min(len(received) - end, size - own)
        with memoryview(received) as view:
            coming.block[:here] = view[end : end + here]
        coming.room = coming.block[here:]
        self._drop(end + here)
        return None


def is_answer(message: Message) -> bool:
    """Whether a message has the form of an answer."""
    return type(message.get("ok")) is dict or type(message.get("error")) is dict


# The child's side ------------------------------------------------------------------------------


def serve(channel: Channel, handlers: Mapping[str, Handler]) -> None:
    """Answer messages `{"op": name, ...}` until the other end closes.

    Whatever a handler raises, `sys.exit` and MemoryError included, becomes an answer.
    """
    while (message := channel.receive()) is not None:
        try:
            answer = _answer(handlers, message)
            channel.send(answer)
        except (InvalidInput, TooLarge) as error:  # what the handler returned has no place in BSON
            channel.send({"error": describe(error)})


def _answer(handlers: Mapping[str, Handler], message: Message) -> Message:
    op = message.get("op")
    handler = handlers.get(op) if isinstance(op, str) else None
    if handler is None:
        known = ", ".join(sorted(handlers))
        return {
            "error": describe(InvalidInput(f"there is no operation {op!r}; there are: {known}"))
        }
    try:
        found = handler(message)
        if BLOCK not in found:
            return {"ok": found}
        told = dict(found)
        return {BLOCK: told.pop(BLOCK), "ok": told}
    except BaseException as error:
        return {"error": describe(error, skip_frames=1)}


def describe(error: BaseException, *, skip_frames: int = 0) -> dict[str, str]:
    """An exception as `{code, type, message, traceback}`, texts shortened."""
    if isinstance(error, ChildError):
        told = {"type": error.type, "message": error.text, "traceback": error.traceback}
        return {"code": error.code, **told}
    trace = error.__traceback__
    for _ in range(skip_frames):
        trace = trace.tb_next if trace is not None else None
    code = error.code if isinstance(error, SuperduperError) else UserCodeError.code
    try:
        message, lines = _text(error), traceback.format_exception(type(error), error, trace)
    except MemoryError:
        message, lines = "out of memory", []
    return {
        "code": code,
        "type": type(error).__qualname__,
        "message": _clean(message)[:MESSAGE_CHARACTERS],
        "traceback": _clean("".join(lines))[-TRACEBACK_CHARACTERS:],
    }


def _text(error: BaseException) -> str:
    try:
        text = str(error) or type(error).__qualname__
        return "\n".join([text, *getattr(error, "__notes__", ())])
    except MemoryError:
        raise
    except Exception as broken:  # the exception's own __str__ is user code too
        return f"(its text cannot be shown: {type(broken).__qualname__})"


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
