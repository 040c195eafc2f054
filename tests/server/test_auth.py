"""Who may do what: every route, every role."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pymongo.database import Database
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from superduper.command import Role
from superduper.service import Service
from superduper_server.app import build_app
from superduper_server.auth import CACHE_SECONDS, FRESH_SECONDS, Authenticator, FailureLimit
from superduper_server.pool import Pool
from superduper_server.tokens import ROLES, Tokens, hash_of, matches
from tests.server.running import BASE_URL
from tests.waiting import until

ROLE_TABLE = Path(__file__).with_name("roles.txt")
FILLED = {
    "{collection}": "docs",
    "{name}": "thing",
    "{version}": "1",
    "{id}": "nobody",
    "{model}": "docs.thing",
}
# HEAD comes with GET on the route that FastAPI makes for the description.
ROUTE_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS")


def expected() -> dict[tuple[str, str], str]:
    """The table in the repository: method, path, least role (or public)."""
    found = {}
    for line in ROLE_TABLE.read_text().splitlines():
        method, path, role = line.split()
        found[method, path] = role
    return found


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path that the app answers."""
    found = []
    for route in app.routes:
        assert isinstance(route, Route), route
        found += [(method, route.path) for method in sorted(route.methods or ROUTE_METHODS)]
    return found


def filled(path: str) -> str:
    for part, value in FILLED.items():
        path = path.replace(part, value)
    return path


def test_the_table_in_the_repository_lists_every_route(app: FastAPI) -> None:
    actual = {key: role or "public" for key, role in app.state.table.items()}
    assert actual == expected()
    listed = set(expected())
    missing = [key for key in routes_of(app) if key not in listed]
    assert missing == [("HEAD", "/openapi.json")]  # FastAPI's own: nobody may, see the next test


def test_every_route_with_every_role(
    app: FastAPI, stranger: TestClient, token_of: Callable[[Role], str]
) -> None:
    tokens = {role: token_of(role) for role in ROLES}
    table = expected()
    for method, path in routes_of(app):
        if path == "/v1/jobs/{id}/events":
            continue  # endless when it is allowed: see test_streams
        least = table.get((method, path), "nobody")
        for who in (None, *ROLES):
            headers = {"Authorization": f"Bearer {tokens[who]}"} if who else {}
            answer = stranger.request(method, filled(path), headers=headers, json=None)
            where = (method, path, who, answer.status_code, answer.text[:200])
            if least == "public":
                assert answer.status_code not in (401, 403), where
            elif who is None:
                assert answer.status_code == 401, where
            elif least == "nobody" or ROLES.index(who) < ROLES.index(least):
                assert answer.status_code == 403, where
            else:
                assert answer.status_code not in (401, 403), where
                assert answer.status_code < 500, where


def test_a_route_that_nobody_listed_is_for_nobody(app: FastAPI, client: TestClient) -> None:
    @app.get("/v1/forgotten")
    def forgotten() -> str:
        return "secret"

    answer = client.get("/v1/forgotten")
    assert answer.status_code == 403
    assert "no entry in the role table" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer sd_",
        "Bearer sd_nobody00_" + "a" * 43,
        "Bearer sd_nobody00_" + "a" * 4300,
        "Basic c2Q6c2Q=",
        "Bearer sd_NOBODY00_" + "a" * 43,
        "Bearer \u00e9",
    ],
)
def test_what_is_no_token_is_refused(stranger: TestClient, header: str) -> None:
    answer = stranger.get("/v1/status", headers={b"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthorized"


def test_a_wrong_secret_is_refused(stranger: TestClient, token_of: Callable[[Role], str]) -> None:
    token = token_of("admin")
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    answer = stranger.get("/v1/status", headers={"Authorization": f"Bearer {wrong}"})
    assert answer.status_code == 401
    assert token[-43:] not in answer.text


def test_unknown_paths_tell_strangers_nothing(stranger: TestClient, client: TestClient) -> None:
    assert stranger.get("/v1/nothing", headers={"Authorization": ""}).status_code == 401
    assert client.get("/v1/nothing").status_code == 404
    assert client.patch("/v1/status").status_code == 405
    assert client.get("/docs/../v1/status/").status_code == 404


def test_a_browser_asking_before_it_sends_gets_no(stranger: TestClient) -> None:
    asked = {"Origin": "http://evil", "Access-Control-Request-Method": "POST"}
    answer = stranger.options("/v1/collections/docs/documents", headers=asked)
    assert answer.status_code == 401
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_expired_and_revoked_tokens_are_worthless(
    stranger: TestClient, database: Database[Any]
) -> None:
    tokens = Tokens(database)
    short = tokens.create("reader", seconds=0.001)["token"]
    made = tokens.create("reader")

    def status(token: str) -> int:
        header = {"Authorization": f"Bearer {token}"}
        return int(stranger.get("/v1/status", headers=header).status_code)

    until(lambda: status(short) == 401, 2.5, "the end of the token's lifetime")
    assert status(made["token"]) == 200
    tokens.revoke(made["id"])
    until(lambda: status(made["token"]) == 401, 2.5, "the revoked token to be worthless")


def test_the_last_use_is_noted(client: TestClient, database: Database[Any]) -> None:
    assert client.get("/v1/status").status_code == 200
    until(lambda: Tokens(database).list()[0]["last_used"] is not None, 10, "the note")


def test_only_hashes_are_stored(database: Database[Any]) -> None:
    token = Tokens(database).create("writer")["token"]
    secret = token.split("_", 2)[2]
    stored = database["superduper.tokens"].find_one({})
    assert stored is not None
    assert stored["hash"] == hash_of(secret)
    assert secret not in str(stored)
    assert "hash" not in Tokens(database).list()[0]
    assert matches(stored, secret)
    assert not matches(stored, secret[::-1])
    assert not matches(None, secret)


def test_tokens_over_http(client: TestClient, stranger: TestClient) -> None:
    made = client.post("/v1/tokens", json={"role": "reader", "seconds": 3600}).json()
    assert made["expires_at"] - made["created_at"] == 3_600_000
    header = {"Authorization": f"Bearer {made['token']}"}
    assert stranger.get("/v1/status", headers=header).status_code == 200
    listed = client.get("/v1/tokens").json()
    assert [row["role"] for row in listed] == ["admin", "reader"]
    assert made["token"] not in str(listed)
    assert client.delete(f"/v1/tokens/{made['id']}").json()["revoked"] is True
    assert client.delete("/v1/tokens/nobody").status_code == 404
    assert client.post("/v1/tokens", json={"role": "owner"}).status_code == 422
    assert client.post("/v1/tokens", json={"role": "reader", "seconds": -1}).status_code == 422


def test_who_asked_is_noted(client: TestClient, database: Database[Any]) -> None:
    client.post("/v1/tokens", json={"role": "reader"})
    rows = Tokens(database).list()
    assert rows[1]["created_by"] == rows[0]["id"]


class TestFailures:
    """Wrong tokens per address."""

    def test_the_eleventh_wrong_token_of_a_minute_is_too_many(
        self, stranger: TestClient, client: TestClient, token_of: Callable[[Role], str]
    ) -> None:
        good = {"Authorization": f"Bearer {token_of('reader')}"}
        assert stranger.get("/v1/status", headers=good).status_code == 200
        wrong = {"Authorization": "Bearer sd_nobody00_" + "a" * 43}
        codes = [stranger.get("/v1/status", headers=wrong).status_code for _ in range(11)]
        assert codes == [401] * 10 + [429]
        refused = stranger.get("/v1/status", headers=wrong)
        assert refused.headers["retry-after"] == "60"
        # Somebody who was known before comes through, a stranger is not even looked up.
        assert stranger.get("/v1/status", headers=good).status_code == 200
        late = {"Authorization": f"Bearer {token_of('reader')}"}
        assert stranger.get("/v1/status", headers=late).status_code == 429

    def test_a_minute_later_it_may_try_again(self) -> None:
        now = 100.0
        limit = FailureLimit(2, clock=lambda: now)
        limit.note("a")
        assert not limit.is_reached("a")
        limit.note("a")
        assert limit.is_reached("a")
        assert not limit.is_reached("b")
        now = 160.0
        assert not limit.is_reached("a")
        limit.note("a")
        assert not limit.is_reached("a")

    def test_no_token_at_all_is_no_failed_login(self, stranger: TestClient) -> None:
        assert {stranger.get("/v1/status").status_code for _ in range(15)} == {401}


class TestTrustedHosts:
    """Names that the server answers to, together with tokens."""

    @pytest.fixture
    def named(
        self, service: Service, token_of: Callable[[Role], str], monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[TestClient]:
        monkeypatch.setenv("SUPERDUPER_HOSTS", "api.example, other.example")
        headers = {"Authorization": f"Bearer {token_of('admin')}"}
        app = build_app(service)
        with TestClient(app, base_url="http://api.example:8000", headers=headers) as client:
            yield client

    @pytest.mark.parametrize("path", ["/v1/status", "/v1/collections/docs/models/m/predict"])
    def test_another_host_is_refused_whatever_the_token(self, named: TestClient, path: str) -> None:
        method = "POST" if path.endswith("predict") else "GET"
        body = None if method == "GET" else {"inputs": [1]}
        for host in ("evil.example", "api.example.evil", "127.0.0.1", ""):
            answer = named.request(method, path, json=body, headers={"Host": host})
            assert answer.status_code == 403, host
            assert "SUPERDUPER_HOSTS" in answer.json()["error"]["message"]
        for host in ("api.example", "API.example:443", "other.example"):
            assert named.request(method, path, json=body, headers={"Host": host}).status_code != 403

    def test_a_page_of_another_site_is_refused(self, named: TestClient) -> None:
        for origin, status in (("https://api.example", 200), ("https://evil.example", 403)):
            assert named.get("/v1/status", headers={"Origin": origin}).status_code == status

    def test_probes_need_no_name(self, named: TestClient) -> None:
        assert named.get("/healthz", headers={"Host": "10.0.0.7"}).status_code == 200

    def test_no_token_is_told_no_more_than_before(self, named: TestClient) -> None:
        assert named.get("/v1/status", headers={"Authorization": ""}).status_code == 401


class TestInsecure:
    """Without tokens, on loopback."""

    def test_nobody_needs_a_token(self, open_app: FastAPI) -> None:
        with TestClient(open_app, base_url=BASE_URL) as client:
            assert client.get("/v1/status").status_code == 200
            assert client.get("/v1/tokens").status_code == 200

    @pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.evil.example", "", "0.0.0.0"])
    def test_a_page_that_names_another_host_is_refused(self, open_app: FastAPI, host: str) -> None:
        with TestClient(open_app, base_url=BASE_URL) as client:
            assert client.get("/v1/status", headers={"Host": host}).status_code == 403

    @pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000"])
    def test_loopback_has_several_names(self, open_app: FastAPI, host: str) -> None:
        with TestClient(open_app, base_url=BASE_URL) as client:
            assert client.get("/v1/status", headers={"Host": host}).status_code == 200

    def test_what_a_page_can_send_unasked_is_not_taken(self, open_app: FastAPI) -> None:
        with TestClient(open_app, base_url=BASE_URL) as client:
            answer = client.post(
                "/v1/collections/docs/documents",
                content=b'{"documents": [{"a": 1}]}',
                headers={"Content-Type": "text/plain"},
            )
            assert answer.status_code == 415


def test_websockets_are_refused(stranger: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), stranger.websocket_connect("/v1/status"):
        pass


def test_many_addresses_do_not_fill_the_memory() -> None:
    limit = FailureLimit(1)
    for number in range(10_050):
        limit.note(str(number))
    assert [limit.is_reached(str(number)) for number in (0, 49, 50, 10_049)] == [False] * 2 + [
        True
    ] * 2


def test_the_cache_of_tokens_is_bounded(database: Database[Any]) -> None:
    authenticator = Authenticator(
        Tokens(database), Pool("checks", threads=1, waiting=1), FailureLimit(10)
    )
    for number in range(10_050):
        authenticator._remember(str(number), 0.0, {"_id": str(number)})
    assert len(authenticator._cache) == 10_000


def test_who_is_known_is_known_at_once_and_not_for_long(database: Database[Any]) -> None:
    now = 100.0
    tokens, pool = Tokens(database), Pool("lookups", threads=1, waiting=8)
    authenticator = Authenticator(tokens, pool, FailureLimit(9), clock=lambda: now)
    made = tokens.create("reader")
    header = f"Bearer {made['token']}"

    async def ask() -> None:
        nonlocal now
        assert authenticator.identify_now(header) is None, "nobody has looked it up"
        identity = await authenticator.identify(header, "1.2.3.4")
        assert authenticator.identify_now(header) == identity
        assert authenticator.identify_now(header) is authenticator.identify_now(header)
        assert authenticator.identify_now(header[:-1] + "!") is None
        other = header[:-2] + ("aa" if not header.endswith("aa") else "bb")
        assert authenticator.identify_now(other) is None
        now += FRESH_SECONDS
        assert authenticator.identify_now(header) == identity
        await asyncio.gather(*[task for _, task in authenticator._lookups.values()])
        now += FRESH_SECONDS
        assert authenticator.identify_now(header) == identity, "it was looked up again"
        now += CACHE_SECONDS
        assert authenticator.identify_now(header) is None
        await authenticator.identify(header, "1.2.3.4")
        assert authenticator.identify_now(header) == identity
        tokens.revoke(made["id"])
        assert authenticator.identify_now(header) is None

    asyncio.run(ask())
    pool.close()


def test_a_token_revoked_elsewhere_is_forgotten_when_it_is_looked_up_again(
    database: Database[Any],
) -> None:
    now = 100.0
    tokens, pool = Tokens(database), Pool("lookups", threads=1, waiting=8)
    authenticator = Authenticator(tokens, pool, FailureLimit(9), clock=lambda: now)
    made = tokens.create("reader")
    header = f"Bearer {made['token']}"

    async def ask() -> None:
        nonlocal now
        await authenticator.identify(header, "1.2.3.4")
        Tokens(database).revoke(made["id"])
        now += FRESH_SECONDS
        assert authenticator.identify_now(header) is not None, "within two seconds"
        await asyncio.gather(*[task for _, task in authenticator._lookups.values()])
        assert authenticator.identify_now(header) is None

    asyncio.run(ask())
    pool.close()
