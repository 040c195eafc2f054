"""The shortest way for a prediction: answered in uvicorn's protocol class.

It takes a request that came whole in one piece, alone on its connection, over HTTP/1.1 that goes
on. uvicorn sees a cycle that is busy, so its own rules hold for what comes after it, for closing
and for shutting down.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from superduper_server.fast import FastPath, RawHeaders, Work, is_small
from superduper_server.models import Place, find_place


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

    def __init__(self, fast: FastPath | None, **parts: Any) -> None:
        super().__init__(**parts)
        self._fast = fast
        self._place: Place | None = None
        self._body = b""
        self._work: Work | None = None

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; what has not come whole by now goes the ordinary way."""
        super().data_received(data)
        if self._place is not None and not self.transport.is_closing():
            self._leave()

    def on_headers_complete(self) -> None:
        """The head of a request is there: choose its way."""
        self._place = self._chosen()
        if self._place is None:
            super().on_headers_complete()

    def _chosen(self) -> Place | None:
        if self._fast is None or self.expect_100_continue or self.flow.write_paused:
            return None
        if self.cycle is not None and not self.cycle.response_complete:
            return None
        parser = self.parser
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            return None
        if not parser.should_keep_alive() or parser.should_upgrade() or not is_small(self.headers):
            return None
        self._body = b""
        return find_place(self.url.decode("latin-1"))

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._place is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        """The request is whole."""
        place, fast = self._place, self._fast
        if place is None or fast is None:
            super().on_message_complete()
            return
        before, cycle = self.cycle, _Cycle()
        self.cycle = cycle  # type: ignore[assignment]

        def send(status: int, headers: RawHeaders, body: bytes) -> None:
            self._send(cycle, status, headers, body)

        self._work = fast.begin(place, self.headers, self._body, send)
        if self._work is None:
            self.cycle = before
            self._leave()
            super().on_message_complete()
        self._place = None

    def _leave(self) -> None:
        """Let the application have what has come so far."""
        self._place = None
        super().on_headers_complete()
        if self._body:
            super().on_body(self._body)

    def _send(self, cycle: _Cycle, status: int, headers: RawHeaders, body: bytes) -> None:
        self._work = None
        if self.transport.is_closing():
            cycle.response_complete = True
            return
        closes = not cycle.keep_alive or (b"connection", b"close") in headers
        parts = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive and (b"connection", b"close") not in headers:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body)
        self.transport.write(b"".join(parts))
        cycle.response_complete = True
        if closes:
            self.transport.close()
        self.on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: what was asked need not be run."""
        if self._work is not None:
            self._work.abandon()
            self._work = None
        super().connection_lost(exc)
