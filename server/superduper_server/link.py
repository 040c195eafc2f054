"""Messages between the processes of one server: BSON over a socket pair that only they have.

A frame is that of `superduper.jobs.channel`. Either side may call the other; a message that is no
call and no reply is news that nobody answers.
"""

import asyncio
import itertools
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, cast

from superduper.errors import NotReady, SuperduperError, TimedOut, error_of
from superduper.jobs.channel import HEAD_BYTES, BrokenFrame, Message, decode, encode

logger = logging.getLogger(__name__)

Answer = Callable[[str, Message], Awaitable[Any]]
"""Answers a call: its name, and what came with it."""


class Link(asyncio.Protocol):
    """One end; for the event loop's thread."""

    def __init__(
        self, answer: Answer, hear: Callable[[Message], None], lost: Callable[[], None]
    ) -> None:
        """`hear` is given the news, `lost` is called once when the other end is gone."""
        self._answer = answer
        self._hear = hear
        self._lost = lost
        self._transport: asyncio.WriteTransport | None = None
        self._received = bytearray()
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def over(
        cls,
        connection: socket.socket,
        answer: Answer,
        hear: Callable[[Message], None],
        lost: Callable[[], None],
    ) -> "Link":
        """A link over one end of a socket pair, which it closes."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(
            lambda: cls(answer, hear, lost), sock=connection
        )
        return link

    @property
    def unsent_bytes(self) -> int:
        """What the other end has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def is_lost(self) -> bool:
        """Whether the other end is gone."""
        return self._transport is None

    def send(self, message: Message) -> None:
        """Send a message; nothing if nobody is there any more.

        Raises InvalidInput or TooLarge for what cannot be sent.
        """
        body = encode(message)
        if self._transport is not None:
            self._transport.write(struct.pack("<I", len(body)) + body)

    async def call(self, name: str, seconds: float | None = None, **fields: Any) -> Any:
        """What the other end answers.

        Raises the error that it answers with, NotReady if it is gone, TimedOut if it takes longer.
        """
        if self._transport is None:
            raise NotReady("a process of this server has ended: try again in a moment")
        number = next(self._numbers)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            self.send({"call": number, "name": name, "fields": fields})
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError as error:
            if isinstance(error, SuperduperError):
                raise  # that is the answer
            raise TimedOut(f"no answer to {name!r} from another process of this server") from error
        finally:
            del self._calls[number]

    def close(self) -> None:
        """Send what is to be sent, then hang up."""
        if self._transport is not None:
            self._transport.close()

    # What the loop calls ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It begins."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of messages."""
        received = self._received
        received += data
        start = 0
        try:
            while len(received) >= start + HEAD_BYTES:
                begin = start + HEAD_BYTES
                end = begin + int.from_bytes(received[start:begin], "little")
                if len(received) < end:
                    break
                with memoryview(received) as view, view[begin:end] as body:
                    message = decode(body)
                start = end
                self._take(message)
        except BrokenFrame:  # it is ours: there is no going on
            logger.exception(
                "a message between processes is broken", extra={"event": "link.broken"}
            )
            self.close()
        del received[:start]

    def connection_lost(self, error: Exception | None) -> None:
        """The other end is gone."""
        self._transport = None
        for future in self._calls.values():
            if not future.done():
                future.set_exception(NotReady("a process of this server has ended: try again"))
        self._lost()

    def _take(self, message: Message) -> None:
        if "call" in message:
            task = asyncio.get_running_loop().create_task(self._reply(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif "reply" in message:
            future = self._calls.get(message["reply"])
            if future is None or future.done():
                return
            if (error := message.get("error")) is not None:
                future.set_exception(error_in(error))
            else:
                future.set_result(message["ok"])
        else:
            self._hear(message)

    async def _reply(self, message: Message) -> None:
        reply: Message = {"reply": message["call"]}
        try:
            found = await self._answer(message["name"], message["fields"])
            self.send({**reply, "ok": found})
        except Exception as error:  # whatever it is, the caller must hear of it
            self.send({**reply, "error": told(error)})


def told(error: Exception) -> Message:
    """An error as it travels; one that is not ours is logged here."""
    if not isinstance(error, SuperduperError):
        logger.error("an error inside the server", exc_info=error, extra={"event": "link.failed"})
        error = SuperduperError("an error inside the server; its log has the details")
    told: Message = {"code": error.code, "message": error.message}
    return {**told, "retry_after": error.retry_after} if isinstance(error, NotReady) else told


def error_in(message: Message) -> SuperduperError:
    """The error that has travelled."""
    error = error_of(message["code"], message["message"])
    if isinstance(error, NotReady):
        error.retry_after = message["retry_after"]
    return error
