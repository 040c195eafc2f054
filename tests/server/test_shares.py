"""One token's share of a server: requests a second, requests at once; and what goes on is ended."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pymongo.database import Database
from starlette.testclient import TestClient

from superduper.command import Role
from superduper.errors import TooManyRequests
from superduper.jobs.queue import Queue
from superduper.service import Service
from superduper_server import streams
from superduper_server.app import build_app
from superduper_server.limits import Limits
from superduper_server.serve import make_server
from superduper_server.shares import Shares
from superduper_server.tokens import Identity, Tokens
from tests.server.running import BASE_URL, serving
from tests.waiting import until

ONE, OTHER = Identity("one", "reader"), Identity("other", "reader")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shares(clock: Clock) -> Shares:
    return Shares(Limits(token_rate=3, token_at_once=2), clock)


def how_many(shares: Shares, identity: Identity, tries: int = 10) -> int:
    """How many of ten requests, one after the other, are taken."""
    taken = 0
    for _ in range(tries):
        with contextlib.suppress(TooManyRequests), shares.taken(identity):
            taken += 1
    return taken


def test_a_rate_is_kept_over_time(shares: Shares, clock: Clock) -> None:
    assert how_many(shares, ONE) == 3
    assert how_many(shares, OTHER) == 3
    clock.now += 0.4
    assert how_many(shares, ONE) == 1
    clock.now += 1000
    assert how_many(shares, ONE) == 3


def test_a_slow_rate_lets_one_through(shares: Shares, clock: Clock) -> None:
    slow = Identity("slow", "reader", rate=0.1)
    assert how_many(shares, slow) == 1
    clock.now += 9
    assert how_many(shares, slow) == 0
    clock.now += 2
    assert how_many(shares, slow) == 1


def test_only_so_many_at_once(shares: Shares) -> None:
    with shares.taken(ONE), shares.taken(ONE):
        with pytest.raises(TooManyRequests, match="2 requests of this token"), shares.taken(ONE):
            raise AssertionError
        with shares.taken(OTHER):
            pass
    with shares.taken(ONE):
        pass


def test_a_token_may_have_limits_of_its_own(client: TestClient, stranger: TestClient) -> None:
    made = client.post("/v1/tokens", json={"role": "reader", "rate": 2, "at_once": 5}).json()
    assert (made["rate"], made["at_once"]) == (2, 5)
    header = {"Authorization": f"Bearer {made['token']}"}
    answers = [stranger.get("/v1/jobs", headers=header) for _ in range(20)]
    codes = [answer.status_code for answer in answers]
    assert codes[:2] == [200, 200] and 429 in codes
    refused = answers[codes.index(429)]
    assert refused.headers["retry-after"] == "1"
    assert "2 requests a second" in refused.json()["error"]["message"]
    assert client.get("/v1/status").status_code == 200  # others notice nothing


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"rate": -1}, {"at_once": 0}, {"at_once": 1.5}])
def test_limits_that_are_none(client: TestClient, wrong: dict[str, Any]) -> None:
    assert client.post("/v1/tokens", json={"role": "reader", **wrong}).status_code == 422


def test_requests_that_wait_count(
    service: Service, token_of: Callable[[Role], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Semaphore(0), threading.Event()

    def slow(command: Any, author: str) -> Any:
        entered.release()
        assert go_on.wait(20)
        return {}

    monkeypatch.setattr(service, "handle", slow)
    app = build_app(service, limits=Limits(token_at_once=2))
    header = {"Authorization": f"Bearer {token_of('reader')}"}
    codes: list[int] = []

    def ask(client: TestClient) -> None:
        codes.append(client.get("/v1/status", headers=header).status_code)

    with TestClient(app, base_url=BASE_URL) as client:
        waiting = [threading.Thread(target=ask, args=(client,)) for _ in range(2)]
        for thread in waiting:
            thread.start()
            assert entered.acquire(timeout=20)
        assert client.get("/v1/status", headers=header).status_code == 429
        go_on.set()
        for thread in waiting:
            thread.join()
        assert client.get("/v1/status", headers=header).status_code == 200
    assert codes == [200, 200]


def test_a_token_that_is_revoked_here_is_worthless_at_once(
    client: TestClient, stranger: TestClient
) -> None:
    made = client.post("/v1/tokens", json={"role": "reader"}).json()
    header = {"Authorization": f"Bearer {made['token']}"}
    assert stranger.get("/v1/jobs", headers=header).status_code == 200
    client.delete(f"/v1/tokens/{made['id']}")
    assert stranger.get("/v1/jobs", headers=header).status_code == 401


@pytest.fixture
def follower(database: Database[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server, and a token whose bearer follows what does not end."""
    monkeypatch.setattr(streams, "CHECK_SECONDS", 0.0)
    made = Tokens(database).create("reader")
    headers = {"Authorization": f"Bearer {made['token']}"}
    with (
        serving(make_server(database)) as server,
        httpx2.Client(base_url=server.url, headers=headers) as http,
    ):
        yield http, made["id"]


def test_who_follows_a_job_is_cut_off_with_the_token(
    follower: Any, database: Database[Any]
) -> None:
    http, id = follower
    job = Queue(database).put("fit", {})
    with http.stream("GET", f"/v1/jobs/{job}/events") as answer:
        seen = answer.iter_bytes()
        next(seen)
        Tokens(database).revoke(id)
        with pytest.raises(httpx2.HTTPError):
            list(seen)


def test_who_reads_documents_is_cut_off_with_the_token(
    follower: Any, database: Database[Any]
) -> None:
    http, id = follower
    database["docs"].insert_many({"x": bytes(100_000)} for _ in range(500))
    with http.stream("POST", "/v1/collections/docs/documents/stream", json={}) as answer:
        seen = answer.iter_bytes()
        next(seen)
        Tokens(database).revoke(id)
        with pytest.raises(httpx2.HTTPError):
            list(seen)


def test_without_tokens_nobody_has_a_share(open_app: FastAPI) -> None:
    with TestClient(open_app, base_url=BASE_URL) as client:
        assert {client.get("/v1/jobs").status_code for _ in range(20)} == {200}
        until(lambda: open_app.state.backend.requests.pending == 0)
