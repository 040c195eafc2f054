"""The shortest way for a prediction: answered in uvicorn's protocol class.

It takes a request that is whole within a moment, alone on its connection, over HTTP/1.1 that goes
on. uvicorn sees a cycle that is busy, so its own rules hold for what comes after it, for closing
and for shutting down. A head that was parsed before is not parsed again: clients that keep their
connection send the same bytes each time.
"""

import asyncio
from collections import OrderedDict
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from superduper_server.fast import (
    LOOKUP_SECONDS,
    FastPath,
    Head,
    RawHeaders,
    Work,
    has_found,
    may_be_small,
)
from superduper_server.models import find_place
from superduper_server.predict import SMALL_BYTES

HEAD_END = b"\r\n\r\n"
PATIENCE_SECONDS = 0.05
"""How long the rest of a body is waited for; then the application does, which has its deadline."""

REMEMBERED = 1024
LONGEST_REMEMBERED = 1024
ONCE = frozenset({"x-request-id", "traceparent"})
"""Headers that differ in every request: a head with one will not come again."""


class Heads:
    """Heads of requests by their bytes, each with the length of the body that it announces."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[Head, int]] = OrderedDict()

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """Head and body of data that is exactly one request, if its head is known."""
        end = data.find(HEAD_END) + len(HEAD_END)
        found = self._known.get(data[:end])
        if found is None or len(data) - end != found[1]:
            return None
        return found[0], data[end:]

    def note(self, data: bytes, head: Head, length: int) -> None:
        """Remember the head of data, if that is exactly one request with a body of that length."""
        end = data.find(HEAD_END) + len(HEAD_END)
        is_whole = len(data) - end == length
        if is_whole and end <= LONGEST_REMEMBERED and ONCE.isdisjoint(head.fields):
            self._known[data[:end]] = head, length
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)


class _Told:
    """Where uvicorn says that something has come: nobody listens."""

    def set(self) -> None:
        """Nothing to do."""


class _Cycle:
    """What uvicorn looks at to see whether a connection is busy."""

    message_event = _Told()

    def __init__(self) -> None:
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True


class FastLane(HttpToolsProtocol):
    """A connection whose predictions may take the short way."""

    def __init__(self, fast: FastPath | None, heads: Heads, **parts: Any) -> None:
        super().__init__(**parts)
        self._fast = fast
        self._heads = heads
        self._head: Head | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._patience: asyncio.TimerHandle | None = None
        self._lookup: asyncio.Task[Any] | None = None
        self._work: Work | None = None
        self._cycle = _Cycle()
        self._before: Any = None
        """What uvicorn had for this connection before one waits for a look-up."""
        self._taken: tuple[Head, int] | None = None
        self._told: RawHeaders = []
        self._told_lines = b""
        self._quiet_since = 0.0
        self._is_in_message = False

    # A head that is known --------------------------------------------------------------------

    def take_known(self, data: bytes) -> bool:
        """Answer a request whose head is known by its bytes; False if this is none."""
        if self._fast is None or self._is_in_message or self.flow.write_paused:
            return False
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        found = self._heads.find(data)
        return found is not None and self._begin(self._fast, *found)

    def _begin(self, fast: FastPath, head: Head, body: bytes) -> bool:
        before, cycle = self.cycle, self._cycle
        cycle.response_complete = False
        self.cycle = cycle  # type: ignore[assignment]
        self._work = fast.begin(head, body, self._send)
        if self._work is None:
            cycle.response_complete = True
            self.cycle = before
            return False
        if cycle.response_complete:
            self._work = None  # it has failed at once
        return True

    # A head that is not ----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; the rest of it may come in a moment."""
        self._taken = None
        super().data_received(data)
        if self._taken is not None:
            self._heads.note(data, *self._taken)
        elif self._head is not None and self._patience is None:
            self._patience = self.loop.call_later(PATIENCE_SECONDS, self._stop_waiting)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._lookup is not None:
            self._stop_waiting()  # what uvicorn knows of the one before is forgotten now
        self._is_in_message = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head of a request is there: choose its way."""
        self._head = self._chosen()
        if self._head is None:
            super().on_headers_complete()

    def _chosen(self) -> Head | None:
        if self._fast is None or self.expect_100_continue or self.flow.write_paused:
            return None
        if self.cycle is not None and not self.cycle.response_complete:
            return None
        parser = self.parser
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            return None
        if not parser.should_keep_alive() or parser.should_upgrade():
            return None
        if not may_be_small(self.headers):
            return None
        self._pieces, self._size = [], 0
        place = find_place(self.url.decode("latin-1"))
        return None if place is None else Head.of(place, self.headers)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._head is None:
            super().on_body(body)
        else:
            self._pieces.append(body)
            self._size += len(body)
            if self._size > SMALL_BYTES:  # as nobody had announced
                self._leave()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._is_in_message = False
        self._forget_patience()
        if self._head is None:
            super().on_message_complete()
        elif self._begin_whole():
            self._taken, self._head = (self._head, self._size), None
        elif not self._wait_for_lookup():
            self._leave_whole()

    def _begin_whole(self) -> bool:
        """Answer the request that is whole now."""
        assert self._fast is not None and self._head is not None
        return self._begin(self._fast, self._head, b"".join(self._pieces))

    def _wait_for_lookup(self) -> bool:
        """Wait for what must be looked up, if that helps; uvicorn sees a busy connection."""
        assert self._fast is not None and self._head is not None
        self._lookup = self._fast.look_up(self._head)
        if self._lookup is None:
            return False
        self._before, self.cycle = self.cycle, self._cycle  # type: ignore[assignment]
        self._cycle.response_complete = False
        self._lookup.add_done_callback(self._look_again)
        if self._patience is None:
            self._patience = self.loop.call_later(LOOKUP_SECONDS, self._stop_waiting)
        return True

    def _look_again(self, lookup: "asyncio.Task[Any]") -> None:
        if self._lookup is not lookup:
            return  # nobody waits for it any more
        if not has_found(lookup):
            self._stop_waiting()
            return
        self._forget_lookup()
        if self._begin_whole():
            self._forget_patience()
            self._head = None
        elif not self._wait_for_lookup():
            self._stop_waiting()

    def _leave(self) -> None:
        """Let the application have what has come so far."""
        self._head = None
        super().on_headers_complete()
        if self._pieces:
            super().on_body(b"".join(self._pieces))

    def _leave_whole(self) -> None:
        """Let the application have a request that is whole."""
        self._leave()
        super().on_message_complete()

    def _stop_waiting(self) -> None:
        """What has not come whole, or been looked up, by now goes the ordinary way."""
        self._forget_patience()
        is_whole = self._head is not None and not self._is_in_message
        self._forget_lookup()
        if self._head is None or self.transport.is_closing():
            return
        if is_whole:
            self._leave_whole()
        else:
            self._leave()

    def _forget_lookup(self) -> None:
        if self._lookup is not None:
            self._lookup = None
            self._cycle.response_complete = True
            self.cycle, self._before = self._before, None

    def _forget_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def shutdown(self) -> None:
        """The server stops: what was begun may end."""
        self._stop_waiting()
        super().shutdown()

    # Answers ---------------------------------------------------------------------------------

    def _send(self, status: int, headers: RawHeaders, body: bytes) -> None:
        cycle = self._cycle
        self._work = None
        cycle.response_complete = True
        if self.transport.is_closing():
            return
        closes = not cycle.keep_alive or (b"connection", b"close") in headers
        if not cycle.keep_alive and (b"connection", b"close") not in headers:
            headers = [*headers, (b"connection", b"close")]
        self.transport.write(
            b"".join((STATUS_LINE[status], self._defaults(), lines(headers), b"\r\n", body))
        )
        if closes:
            self.transport.close()
        if closes or self.pipeline or self._is_in_message:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._be_quiet()

    def _defaults(self) -> bytes:
        """What uvicorn says in every answer; it makes a new list once a second."""
        told = self.server_state.default_headers
        if told is not self._told:
            self._told, self._told_lines = told, lines(told)
        return self._told_lines

    def _be_quiet(self) -> None:
        """Wait for the next request, with one timer that looks again, not one for each request."""
        self._quiet_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._wait_quietly(self.timeout_keep_alive)

    def _wait_quietly(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def timeout_keep_alive_handler(self) -> None:
        """Hang up, if nothing has come for so long."""
        self.timeout_keep_alive_task = None
        if self.cycle is not None and not self.cycle.response_complete:
            return
        left = self._quiet_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._wait_quietly(left)
        else:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: what was asked need not be run."""
        self._forget_patience()
        self._forget_lookup()
        self._head = None
        if self._work is not None:
            self._work.abandon()
            self._work = None
        super().connection_lost(exc)


def lines(headers: RawHeaders) -> bytes:
    """Headers as they are sent."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])
