"""Clients that send slowly, nothing, too much, or read nothing: each is hung up on in time."""

import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pymongo.database import Database

from superduper.command import Role
from superduper.service import Service
from superduper_server.limits import Limits
from superduper_server.serve import Server, listen
from tests.server.attackers import (
    BODY_HEAD,
    HEAD,
    answer_of,
    connect,
    connected,
    seconds_until_closed,
)
from tests.server.certificates import make_certificate
from tests.server.running import serving
from tests.waiting import until

LIMITS = Limits(
    head_seconds=0.4,
    receive_seconds=0.4,
    least_rate=1000,
    head_bytes=4096,
    headers=20,
    address_connections=8,
    connections=12,
)
# What a client that never ends its request sends again and again.
DRIPS = {
    "nothing at all": ((), b""),
    "blank lines": ((), b"\r\n"),
    "a head, byte by byte": ((HEAD, b"X-Slow: "), b"a"),
    "a head without an end": ((HEAD,), b"X: y\r\n"),
    "blank lines after a request": ((b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",), b"\r\n"),
    "a second head": ((b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /",), b"a"),
    "a body": ((BODY_HEAD, b"\r\n"), b"a"),
    "a body that nobody reads": ((BODY_HEAD, b"Authorization: no\r\n\r\n"), b"a"),
    "a body of a public path": (
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",),
        b"a",
    ),
    "a body in pieces": (
        (HEAD, b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"),
        b"1\r\na\r\n",
    ),
}


@pytest.fixture
def server(database: Database[Any]) -> Iterator[Server]:
    """A server with short deadlines that asks for no tokens."""
    made = Server(
        Service(database),
        listen("127.0.0.1", 0),
        insecure=True,
        register_code=True,
        limits=LIMITS,
    )
    with serving(made) as found:
        yield found


@pytest.fixture
def guarded(database: Database[Any], token_of: Callable[[Role], str]) -> Iterator[Server]:
    """The same, which asks for tokens."""
    made = Server(
        Service(database),
        listen("127.0.0.1", 0),
        insecure=False,
        register_code=True,
        limits=LIMITS,
    )
    with serving(made) as found:
        yield found


@pytest.mark.parametrize("how", DRIPS)
def test_a_slow_client_is_hung_up_on(server: Server, how: str) -> None:
    begun, drip = DRIPS[how]
    with connected(server.url, *begun) as connection:
        assert seconds_until_closed(connection, drip, most=5) < 3


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01"], ids=["nothing", "the first bytes"])
def test_who_does_not_end_a_tls_handshake_is_hung_up_on(
    database: Database[Any], tmp_path: Path, begun: bytes
) -> None:
    tls = make_certificate(tmp_path)
    made = Server(
        Service(database),
        listen("127.0.0.1", 0),
        insecure=True,
        register_code=True,
        tls=tls,
        limits=LIMITS,
    )
    with serving(made) as server:
        with connected(server.url, begun) as connection:
            assert seconds_until_closed(connection, b"", most=10) < 8
        trusted = ssl.create_default_context(cafile=tls[0])
        assert httpx2.get(f"{server.url}/healthz", verify=trusted).status_code == 200


def test_a_stranger_is_hung_up_on_too(guarded: Server) -> None:
    with connected(guarded.url, BODY_HEAD, b"\r\n") as connection:
        assert seconds_until_closed(connection, b"a", most=5) < 3


def test_a_head_that_is_late_is_told(server: Server) -> None:
    with connected(server.url, HEAD) as connection:
        assert answer_of(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "head",
    [
        b"X: " + b"a" * 8000 + b"\r\n",
        b"X: " + b"a" * 8000,
        b"".join(b"X-%d: y\r\n" % i for i in range(30)),
    ],
)
def test_a_head_that_is_too_long_is_told(server: Server, head: bytes) -> None:
    with connected(server.url, HEAD, head) as connection:
        if head.endswith(b"\r\n"):
            connection.sendall(b"\r\n")
        said = answer_of(connection)
    assert said.startswith(b"HTTP/1.1 431 ") and said.endswith(b"}}"), said[:200]


@pytest.mark.parametrize("name", [b"Host", b"host", b"Authorization", b"Content-Type"])
def test_a_header_that_is_there_twice_is_refused(server: Server, name: bytes) -> None:
    """Whoever is in between may have believed the other one."""
    both = name + b": one\r\n" + name.upper() + b": two\r\n"
    with connected(server.url, HEAD, both, b"\r\n") as connection:
        said = answer_of(connection)
    assert said.startswith(b"HTTP/1.1 400 ") and b"twice" in said, said[:200]


def test_a_client_that_does_not_read_is_hung_up_on(server: Server, database: Database[Any]) -> None:
    database["docs"].insert_many({"text": "x" * 1_000_000} for _ in range(30))
    body = b'{"limit": 30}'
    asked = (
        b"POST /v1/collections/docs/documents/query HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    with connected(server.url, asked, body) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        until(lambda: not server.server_state.connections, what="the server to hang up", seconds=20)


def test_an_honest_client_notices_nothing(server: Server) -> None:
    with httpx2.Client(base_url=server.url) as http:
        for _ in range(3):
            assert http.get("/v1/status").status_code == 200
            time.sleep(LIMITS.head_seconds + 0.2)  # idle between requests, for longer than a head


def test_one_address_cannot_take_all_connections(server: Server) -> None:
    mine = [connect(server.url) for _ in range(LIMITS.address_connections)]
    try:
        with connect(server.url) as one_more:
            assert answer_of(one_more) == b""
        with connected(server.url, b"GET /healthz HTTP/1.0\r\n\r\n", source="127.0.0.2") as other:
            assert answer_of(other).startswith(b"HTTP/1.1 200 ")
    finally:
        for connection in mine:
            connection.close()
    until(lambda: not server.server_state.connections, what="all to be forgotten")
    with httpx2.Client(base_url=server.url) as http:
        assert http.get("/healthz").status_code == 200


def test_all_addresses_together_are_limited_too(server: Server) -> None:
    sources = [f"127.0.0.{1 + number % 4}" for number in range(LIMITS.connections)]
    mine = [connect(server.url, source) for source in sources]
    try:
        with connect(server.url, "127.0.0.9") as one_more:
            assert answer_of(one_more) == b""
    finally:
        for connection in mine:
            connection.close()
