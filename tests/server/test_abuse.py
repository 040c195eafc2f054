"""The short forms of `scripts/abuse raw`, `slow` and `crowd`, against a real server process."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.abuse.clients import crowd, slowloris
from tests.abuse.raw import resident_mb, send_mangled
from tests.server.running import Running, running


@pytest.fixture(scope="module")
def port(store_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Running]]:
    """A server, shared by these tests."""
    log = tmp_path_factory.mktemp("abuse") / "log"
    name = f"test_abuse_{random.randrange(10**9)}"
    arguments = ("serve", "--uri", store_uri, "--database", name, "--port", "0", "--json")
    with running(log, *arguments) as server:
        yield int(server.ready["url"].rpartition(":")[2]), server
    assert "Traceback" not in server.log()


def asking(token: str, path: str = "/v1/jobs") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


def test_what_is_not_http(port: tuple[int, Running]) -> None:
    before = resident_mb(port[1].process.pid)
    said, problems = send_mangled(port[0], range(300))
    assert problems == []
    assert said["400"] > 100
    assert resident_mb(port[1].process.pid) - before < 50
    with port[1].http() as http:
        assert http.get("/v1/status").status_code == 200


def test_slow_clients_harm_nobody(port: tuple[int, Running]) -> None:
    request = asking(port[1].ready["token"])
    figures = asyncio.run(slowloris(port[0], request, bad=200, honest=10, seconds=13))
    assert figures["bad_connections"] > 200, figures  # the first were hung up on, and came again
    assert figures["bad_longest_s"] < 12.5, figures  # a head may take 10 s
    assert figures["statuses"].keys() == {200}, figures
    assert (figures["cut_off"], figures["never_answered"]) == (0, 0)
    assert figures["p99_ms"] < 1000, figures


def test_a_crowd_is_answered_or_told_to_wait(
    port: tuple[int, Running], store_uri: str, tmp_path: Path
) -> None:
    with port[1].http() as http:
        tokens = [
            http.post("/v1/tokens", json={"role": "reader"}).json()["token"] for _ in range(4)
        ]
    figures = asyncio.run(
        crowd(port[0], [asking(token) for token in tokens], clients=400, seconds=5)
    )
    assert set(figures["statuses"]) <= {200, 429}, figures
    assert figures["statuses"][200] > 100
    assert figures["cut_off"] == 0
    assert figures["shares_least_to_most"] > 0.3, figures
