"""Connections that end: deadlines for what is sent and for what is read, and how many there may be.

uvicorn has none of these: a client that sends a byte a second, sends nothing, or does not read its
answer keeps its connection for ever there. A body's own deadline is in `limits.BodyLimit`.
"""

import asyncio
import resource
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from superduper.errors import SuperduperError
from superduper_server.fast import FastPath
from superduper_server.fast_lane import FastLane, Heads
from superduper_server.ledger import Ledger, OwnLedger
from superduper_server.limits import Limits

# Files that the server needs beside its connections: the database's sockets, pipes, key files.
SPARE_FILES = 256
# Whoever is in between may heed another one of two.
ONCE = frozenset({b"authorization", b"content-type", b"host"})
ALL = "connections"
"""In the ledger, where no address has this name."""


class Connections:
    """How many connections are open, in all and by address; makes uvicorn's protocol objects."""

    def __init__(
        self, limits: Limits, fast: FastPath | None = None, ledger: Ledger | None = None
    ) -> None:
        self.limits = limits
        self.fast = fast
        self.heads = Heads()
        self.most = min(limits.connections, _files_allowed() - SPARE_FILES)
        self.refused = 0
        self._ledger = ledger or OwnLedger()

    def __call__(self, **parts: Any) -> "Connection":
        return Connection(self, **parts)

    def admit(self, address: str) -> bool:
        """Count one more, unless there are too many or it cannot be counted."""
        try:
            admitted = self._count(address)
        except SuperduperError:
            admitted = False
        self.refused += not admitted
        return admitted

    def _count(self, address: str) -> bool:
        ledger = self._ledger
        with ledger:
            is_room = ledger.held(ALL) < self.most
            if not is_room or ledger.held(address) >= self.limits.address_connections:
                return False
            ledger.hold(address, 1)
            ledger.hold(ALL, 1)
        return True

    def leave(self, address: str) -> None:
        """Count one less."""
        self._ledger.hold(address, -1)
        self._ledger.hold(ALL, -1)


class Connection(FastLane):
    """One connection: a request's head must be there in time, and answers must be taken in time.

    The deadline of a head is not put off by what arrives. It also runs while the rest of a body
    comes in that nobody reads any more, because the answer was given before.
    """

    def __init__(self, connections: Connections, **parts: Any) -> None:
        super().__init__(connections.fast, connections.heads, **parts)
        self.limits = connections.limits
        self._connections = connections
        self._address: str | None = None
        self._is_in_head = False
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    # Beginning and end -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection, or hang up at once if there are too many."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if not self._connections.admit(address):
            transport.abort()
            return
        self._address = address
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the place."""
        if self._address is not None:
            self._connections.leave(self._address)
        self._forget_deadline()
        self.resume_writing()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    # What is sent to us ----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, of several, or of none."""
        if self.transport.is_closing():
            return
        if self.take_known(data):
            self._forget_deadline()
            return
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head_bytes:
                self._refuse(431, "the request's head is too long")
        elif not self._is_in_message and self._is_idle() and self._deadline is None:
            self._expect_head()  # blank lines between requests are no request

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._is_in_head = True
        self._head_bytes = 0
        if self._is_idle():
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The head of a request is there: the application takes over."""
        self._is_in_head = False
        self._forget_deadline()
        length = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if length > self.limits.head_bytes or len(self.headers) > self.limits.headers:
            self._refuse(431, "the request's head is too long")
            raise httptools.HttpParserError("head too long")
        if not ONCE.isdisjoint(_twice(name for name, _ in self.headers)):
            self._refuse(400, "a header that must be there once is there twice")
            raise httptools.HttpParserError("header twice")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        if self._is_idle():
            self._forget_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The last byte of an answer is on its way."""
        super().on_response_complete()
        if self._is_in_message and not self.pipeline:
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(400, "this is not a valid HTTP request")

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        error = {"code": "invalid_input", "message": message, "request_id": ""}
        body = orjson.dumps({"error": error})
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head % len(body) + body)
        self.transport.close()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._forget_deadline()
        self._deadline = self.loop.call_later(self.limits.head_seconds, self._be_late)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _be_late(self) -> None:
        self._deadline = None
        if self._is_in_head and self._is_idle():
            self._refuse(408, "the request's head did not arrive in time")
        else:
            self.transport.abort()

    # What is read by them --------------------------------------------------------------------

    def pause_writing(self) -> None:
        """More of an answer waits than the client takes."""
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        super().resume_writing()

    def _watch_reader(self, waiting: int) -> None:
        seconds = self.limits.receive_seconds
        self._reading = self.loop.call_later(seconds, self._check_reader, waiting)

    def _check_reader(self, waited: int) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waited - waiting < self.limits.least_rate * self.limits.receive_seconds:
            self.transport.abort()
        else:
            self._watch_reader(waiting)


def _twice(names: Iterable[bytes]) -> set[bytes]:
    return {name for name, count in Counter(names).items() if count > 1}


def _files_allowed() -> int:
    """The number of open files this process may have, raised as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
