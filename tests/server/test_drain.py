"""A server that is told to stop: what was begun is answered, within a time, and it is logged."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pymongo.database import Database

import superduper_client
from tests.server.running import Running, running
from tests.waiting import until


def wait(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


@pytest.fixture
def server(
    store_uri: str, database: Database[Any], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Running]:
    """A server with a model that takes its input in seconds."""
    workers, seconds = request.param
    arguments = ("serve", "--uri", store_uri, "--database", database.name, "--port", "0", "--json")
    arguments += ("--workers", str(workers))
    environment = {"SUPERDUPER_LOG": "json", "SUPERDUPER_DRAIN_SECONDS": str(seconds)}
    with running(tmp_path / "log", *arguments, **environment) as server:
        with superduper_client.connect(server.ready["url"], server.ready["token"]) as client:
            docs = client[database.name]["docs"]
            docs.create_model("wait", wait)
            assert docs.predict("wait", 0) == 0  # it is loaded
        yield server


def ask(server: Running, seconds: float) -> tuple[threading.Thread, list[Any]]:
    """A prediction that has been begun, and what will be heard of it."""
    heard: list[Any] = []

    def post() -> None:
        path = "/v1/collections/docs/models/wait/predict"
        with server.http(timeout=60) as http:
            try:
                heard.append(http.post(path, json={"inputs": [seconds]}).status_code)
            except httpx2.TransportError as error:
                heard.append(error)

    thread = threading.Thread(target=post)
    thread.start()
    with server.http() as http:
        line = "superduper_requests_in_flight 2.0"  # it, and who asks for the figures
        until(lambda: line in http.get("/metrics").text, what="the prediction to begin")
    return thread, heard


@pytest.mark.parametrize("server", [(1, 20), (2, 20)], indirect=True)
def test_a_prediction_that_was_begun_is_answered(server: Running) -> None:
    thread, heard = ask(server, 2.0)
    assert server.end() == 0
    thread.join(10)
    assert heard == [200]
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert not any("color_message" in line for line in lines)  # uvicorn's
    ended = [line for line in lines if line.get("event") == "server.ended"]
    assert {(line["message"], line["level"]) for line in ended} == {("ended by SIGTERM", "info")}


@pytest.mark.parametrize("server", [(1, 60), (2, 60)], indirect=True)
def test_what_nobody_waits_for_any_more_is_not_waited_for(server: Running) -> None:
    path = "/v1/collections/docs/models/wait/predict"
    with server.http(timeout=1) as http, pytest.raises(httpx2.ReadTimeout):
        http.post(path, json={"inputs": [50.0]})
    began = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("server", [(1, 1), (2, 1)], indirect=True)
def test_what_takes_longer_than_there_is_time_is_given_up(server: Running) -> None:
    thread, heard = ask(server, 25.0)
    began = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - began < 20
    thread.join(10)
    assert heard != [200] and len(heard) == 1
