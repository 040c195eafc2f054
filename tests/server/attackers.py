"""Clients that mean no good: raw sockets that send slowly, endlessly, nonsense, or do not read."""

import contextlib
import socket
import time
from collections.abc import Iterator

HEAD = b"POST /v1/collections/docs/documents/count HTTP/1.1\r\nHost: 127.0.0.1\r\n"
BODY_HEAD = HEAD + b"Content-Type: application/json\r\nContent-Length: 1000000\r\n"


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    host, _, port = url.partition("://")[2].partition(":")
    return host, int(port)


def connect(url: str, source: str = "127.0.0.1", seconds: float = 20) -> socket.socket:
    """A connection to a server, from an address of loopback."""
    return socket.create_connection(address_of(url), timeout=seconds, source_address=(source, 0))


@contextlib.contextmanager
def connected(url: str, *sent: bytes, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A connection on which something was sent."""
    with connect(url, source) as found:
        for part in sent:
            found.sendall(part)
        yield found


def seconds_until_closed(connection: socket.socket, drip: bytes, most: float) -> float:
    """How long a server bears a client that sends the same few bytes again and again.

    Raises AssertionError if it bears it longer than `most`.
    """
    began = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - began < most:
        try:
            if drip:
                connection.sendall(drip)
            if connection.recv(65536) == b"":
                return time.monotonic() - began
        except TimeoutError:
            continue
        except OSError:
            return time.monotonic() - began
    raise AssertionError(f"still open after {most} s")


def answer_of(connection: socket.socket) -> bytes:
    """All that a server says until it hangs up."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            said += part
    return said
