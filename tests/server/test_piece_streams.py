"""A prediction piece by piece over HTTP: the events, and who goes away in the middle."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from pymongo.database import Database

import superduper_client
from superduper_server.serve import Server, make_server
from tests.server.running import serving
from tests.waiting import until


class Counts:
    """How many numbers were made, and how many makers were ended; one for the model's process."""

    made = 0
    ended = 0


def endless(asked: str) -> Any:
    """Numbers for ever; or how many there were, and whether somebody ended them."""
    return [Counts.made, Counts.ended] if asked == "how many?" else numbers()


def numbers() -> Iterator[str]:
    try:
        while True:
            Counts.made += 1
            yield f"{Counts.made} " + "x" * 100_000
    finally:
        Counts.ended += 1


@pytest.fixture
def server(database: Database[Any]) -> Iterator[Server]:
    with serving(make_server(database, insecure=True)) as server:
        with superduper_client.connect(server.url) as client:
            docs = client[database.name]["docs"]
            docs.create_model("endless", endless)
            docs.create_model("spell", lambda text: iter(text))
        yield server


SPELL = "/v1/collections/docs/models/spell/predict/stream"
ENDLESS = "/v1/collections/docs/models/endless/predict/stream"


def test_the_events(server: Server) -> None:
    answer = httpx2.post(server.url + SPELL, json={"input": "ab"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == (
        'event: piece\ndata: "a"\n\n'
        'event: piece\ndata: "b"\n\n'
        'event: end\ndata: {"pieces":2,"version":1}\n\n'
    )


def test_what_fails_before_the_first_piece_has_a_status(server: Server) -> None:
    answer = httpx2.post(server.url + SPELL, json={"input": 5})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "user_code")
    answer = httpx2.post(server.url + SPELL.replace("spell", "nothing"), json={"input": 5})
    assert answer.status_code == 404
    assert httpx2.post(server.url + SPELL, json={}).status_code == 422


def test_who_hangs_up_ends_the_work(server: Server) -> None:
    def state() -> list[int]:
        asked = {"inputs": ["how many?"]}
        answer = httpx2.post(server.url + ENDLESS.replace("/stream", ""), json=asked)
        found: list[int] = answer.json()["outputs"][0]
        return found

    with httpx2.stream("POST", server.url + ENDLESS, json={"input": "go"}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: piece"
        assert next(lines).startswith('data: "1 xxx')
        assert server.backend.streams == 1
    until(lambda: state()[1] == 1, what="the model's work to be ended")
    made = state()[0]
    assert 1 <= made < 500  # only what the buffers on the way took, at 100 kB a piece
    until(lambda: server.backend.streams == 0, what="the stream to be given back")
    assert state() == [made, 1]
