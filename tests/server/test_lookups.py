"""What was known a while ago is looked up again once, for all who wait for it on a short way."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from pymongo.database import Database

from superduper.handlers import predictions
from superduper_server import fast, fast_lane
from superduper_server.auth import CACHE_SECONDS, FRESH_SECONDS, Authenticator, FailureLimit
from superduper_server.models import STALE_SECONDS, Models, find_place
from superduper_server.pool import Pool
from superduper_server.serve import Server
from superduper_server.tokens import Tokens
from tests.server.raw import connected, receive_answer, request_to
from tests.waiting import until

V1 = "/v1/collections/docs/models/double/predict"
JSON = {"Content-Type": "application/json"}
BODY = json.dumps({"inputs": [[1.0, 2.0, 3.0]]}).encode()
ANSWER = b'"outputs":[[2.0,4.0,6.0]],"version":1}'


class Shut:
    """A door before what is looked up: opened by the test."""

    def __init__(self, find: Callable[..., Any]) -> None:
        self._find = find
        self._open = threading.Event()
        self.asked = 0

    def __call__(self, *parts: Any) -> Any:
        self.asked += 1
        assert self._open.wait(30)
        return self._find(*parts)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def begun(models_server: Server) -> Callable[[], int]:
    """How many requests the short ways have taken, of a server whose model is loaded."""
    with connected(models_server) as connection:
        assert receive_answer(connection, request_to(V1, BODY)).endswith(ANSWER)
    path = models_server.config.app.state.fast  # type: ignore[union-attr]
    return lambda: path.begun


@pytest.fixture
def shut(models_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shut]:
    """The look-up of models, which is held up; nothing is known of any."""
    monkeypatch.setattr(fast_lane, "LOOKUP_SECONDS", 30.0)
    door = Shut(predictions.find)
    monkeypatch.setattr(predictions, "find", door)
    models_server.backend.models.forget()
    yield door
    door.open()


def test_many_who_wait_for_a_model_take_the_short_way(
    models_server: Server, begun: Callable[[], int], shut: Shut
) -> None:
    before = begun()
    connections = [connected(models_server) for _ in range(8)]
    for connection in connections:
        connection.sendall(request_to(V1, BODY))
    until(lambda: shut.asked, what="the look-up")
    shut.open()
    for connection in connections:
        assert receive_answer(connection, b"").endswith(ANSWER)
        connection.close()
    assert begun() == before + len(connections)
    assert shut.asked == 1


def test_a_look_up_that_takes_long_is_left_to_the_application(
    models_server: Server,
    begun: Callable[[], int],
    shut: Shut,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (fast_lane, fast):  # behind the one door there is the other
        monkeypatch.setattr(module, "LOOKUP_SECONDS", 0.0)
    before = begun()
    with connected(models_server) as connection:
        connection.sendall(request_to(V1, BODY))
        until(lambda: models_server.server_state.tasks, what="the application has it")
        shut.open()
        assert receive_answer(connection, b"").endswith(ANSWER)
        assert begun() == before
        assert receive_answer(connection, request_to(V1, BODY)).endswith(ANSWER)
        assert begun() == before + 1


def test_what_is_sent_after_a_request_that_waits_is_answered_after_it(
    models_server: Server, shut: Shut
) -> None:
    other = json.dumps({"inputs": [[4.0, 5.0, 6.0]]}).encode()
    with connected(models_server) as connection:
        connection.sendall(request_to(V1, BODY))
        until(lambda: shut.asked, what="the look-up")
        connection.sendall(request_to(V1, other))
        until(lambda: models_server.server_state.tasks, what="the application has the first")
        shut.open()
        received = receive_answer(connection, b"")
        while received.count(b"outputs") < 2:
            received += receive_answer(connection, b"")
    assert received.index(b"[2.0,4.0,6.0]") < received.index(b"[8.0,10.0,12.0]")


def test_who_leaves_while_something_is_looked_up_is_forgotten(
    models_server: Server, begun: Callable[[], int], shut: Shut
) -> None:
    before = begun()
    with connected(models_server) as connection:
        here = connection.getsockname()
        connection.sendall(request_to(V1, BODY))
        until(lambda: shut.asked, what="the look-up")
    until(
        lambda: here not in [each.client for each in models_server.server_state.connections],
        what="the end of the connection",
    )
    shut.open()
    with connected(models_server) as connection:
        assert receive_answer(connection, request_to(V1, BODY)).endswith(ANSWER)
    assert begun() == before + 1


def test_a_look_up_that_fails_is_told_by_the_application(
    models_server: Server, begun: Callable[[], int]
) -> None:
    before = begun()
    with connected(models_server) as connection:
        path = V1.replace("double", "nothing")
        assert b"404 Not Found" in receive_answer(connection, request_to(path, BODY))
        assert receive_answer(connection, request_to(V1, BODY)).endswith(ANSWER)
    assert begun() == before + 1


def test_behind_another_protocol_class_one_waits_too(
    plain_server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = plain_server
    with httpx2.Client(base_url=url, timeout=60) as http:
        for seconds, more in ((30.0, 1), (0.0, 0)):
            monkeypatch.setattr(fast, "LOOKUP_SECONDS", seconds)
            path._models.forget()
            before = path.begun
            assert http.post(V1, content=BODY, headers=JSON).content.endswith(ANSWER)
            assert path.begun == before + more


def test_a_target_that_is_too_old_answers_nobody(models_server: Server, shut: Shut) -> None:
    """The first who asks has it looked up, and those who come meanwhile must wait as well."""
    now = 100.0
    models = Models(models_server.backend.service, models_server.backend.control, clock=lambda: now)
    place = find_place(V1)
    assert place is not None

    async def ask() -> None:
        nonlocal now
        shut.open()
        target = await models.get(place)
        now += STALE_SECONDS / 2
        assert models.get_now(place) is target, "it is looked up again meanwhile"
        now += STALE_SECONDS
        assert models.get_now(place) is target, "that takes long, but was begun in time"
        await models._refreshing[place]
        now += STALE_SECONDS + 1
        assert [models.get_now(place) for _ in range(3)] == [None] * 3
        lookup = models.look_up(place)
        assert lookup is not None
        found = await lookup
        assert models.get_now(place) is found
        assert models.look_up(place) is None

    asyncio.run(ask())


def test_many_with_one_token_have_it_looked_up_once(database: Database[Any]) -> None:
    now, asked = 100.0, 0

    class Counted(Tokens):
        def find(self, id: str) -> dict[str, Any] | None:
            nonlocal asked
            asked += 1
            return super().find(id)

    tokens, pool = Counted(database), Pool("lookups", threads=4, waiting=4)
    authenticator = Authenticator(tokens, pool, FailureLimit(9), clock=lambda: now)
    header = f"Bearer {tokens.create('reader')['token']}"

    async def ask() -> None:
        nonlocal now
        assert authenticator.identify_soon(header) is None, "nobody has looked it up"
        await authenticator.identify(header, "1.2.3.4")
        for turn in range(2, 5):
            assert authenticator.identify_soon(header) is None, "it is known"
            now += CACHE_SECONDS
            assert authenticator.identify_now(header) is None
            waiting = {authenticator.identify_soon(header) for _ in range(64)}
            assert len(waiting) == 1
            await asyncio.gather(*waiting)  # type: ignore[arg-type]
            assert authenticator.identify_now(header) is not None
            assert asked == turn
        now += CACHE_SECONDS
        first = authenticator.identify_soon(header)
        now += FRESH_SECONDS
        second = authenticator.identify_soon(header)
        assert second is not first, "who comes much later waits for one that was begun later"
        await asyncio.gather(first, second)  # type: ignore[arg-type]
        assert authenticator.identify_now(header) is not None
        assert authenticator.identify_soon(f"{header[:-1]}!") is None, "nobody knows that"
        now += FRESH_SECONDS
        await authenticator.identify(header, "1.2.3.4")
        assert authenticator._lookups, "it is looked up again before anybody must wait"
        await asyncio.gather(*[task for _, task in authenticator._lookups.values()])

    asyncio.run(ask())
    pool.close()
