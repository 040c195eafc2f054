"""Answers without an end, against a real server: a job's events, many documents."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pymongo.database import Database
from starlette.testclient import TestClient

from superduper.jobs.queue import Queue
from superduper_server.app import build_app
from superduper_server.limits import Limits
from superduper_server.serve import make_server
from tests.server.running import BASE_URL, Running, running, serving
from tests.waiting import until


@pytest.fixture
def server(store_uri: str, database: Database[Any], tmp_path: Path) -> Iterator[Running]:
    """A real server of a fresh database."""
    arguments = ("serve", "--uri", store_uri, "--database", database.name, "--port", "0")
    with running(tmp_path / "log", *arguments, "--json") as found:
        yield found


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_a_job_is_followed_until_it_has_finished(server: Running, database: Database[Any]) -> None:
    id = Queue(database).put("fit", {})
    jobs = database["superduper.jobs"]
    with server.http() as http, http.stream("GET", f"/v1/jobs/{id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        seen = events(response.iter_lines())
        assert next(seen)["state"] == "queued"
        jobs.update_one({"_id": id}, {"$set": {"state": "running", "progress": {"done": 1}}})
        assert next(seen)["progress"] == {"done": 1}
        jobs.update_one({"_id": id}, {"$set": {"state": "succeeded", "result": {"version": 1}}})
        assert next(seen)["result"] == {"version": 1}
        assert list(seen) == []


def test_a_job_that_is_none_is_not_followed(server: Running) -> None:
    with server.http() as http:
        answer = http.get("/v1/jobs/nothing/events")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


def test_followers_do_not_hold_up_the_end(server: Running, database: Database[Any]) -> None:
    id = Queue(database).put("fit", {})
    with server.http() as http, http.stream("GET", f"/v1/jobs/{id}/events") as response:
        seen = events(response.iter_lines())
        next(seen)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert list(seen) == []  # a clean end, not a broken connection
        assert server.process.wait(15) == 0, server.log()
        assert time.monotonic() - began < 10


def test_a_follower_that_hangs_up_is_forgotten(server: Running, database: Database[Any]) -> None:
    id = Queue(database).put("fit", {})
    with server.http() as http:
        with http.stream("GET", f"/v1/jobs/{id}/events") as response:
            seen = events(response.iter_lines())  # closes the connection when it is forgotten
            next(seen)
            assert in_flight(http) == 2
        until(lambda: in_flight(http) == 1, what="the stream to be forgotten")


def in_flight(http: httpx2.Client) -> int:
    for line in http.get("/metrics").text.splitlines():
        if line.startswith("superduper_requests_in_flight "):
            return int(float(line.split()[1]))
    raise AssertionError("the figure is missing")


def test_only_so_many_may_follow(app: FastAPI, service: Any, database: Database[Any]) -> None:
    narrow = build_app(service, insecure=True, limits=Limits(streams=0))
    id = Queue(database).put("fit", {})
    with TestClient(narrow, base_url=BASE_URL) as client:
        answer = client.get(f"/v1/jobs/{id}/events")
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert client.post("/v1/collections/docs/documents/stream", json={}).status_code == 429


def test_many_documents_come_in_bounded_memory(server: Running, database: Database[Any]) -> None:
    database["docs"].insert_many({"_id": n, "x": bytes(20_000)} for n in range(5_000))
    before = resident_mb(server.process.pid)
    size = 0
    with server.http() as http:
        path = "/v1/collections/docs/documents/stream"
        headers = {"Accept": "application/bson"}
        with http.stream("POST", path, json={}, headers=headers) as response:
            for chunk in response.iter_bytes():
                size += len(chunk)
    assert size > 100_000_000
    assert resident_mb(server.process.pid) - before < 60


def test_a_reader_who_stops_half_way_frees_the_cursor(database: Database[Any]) -> None:
    database["docs"].insert_many({"_id": n, "x": bytes(20_000)} for n in range(2_000))
    path = "/v1/collections/docs/documents/stream"
    with (
        serving(make_server(database, insecure=True)) as server,
        httpx2.Client(base_url=server.url) as http,
    ):
        with http.stream("POST", path, json={}) as response:
            chunks = response.iter_bytes()  # closes the connection when it is forgotten
            next(chunks)
            assert server.backend.streams == 1
        until(lambda: server.backend.streams == 0, what="the stream to be forgotten")
        until(lambda: server.backend.requests.pending == 0, what="its thread to be free")


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no such process")
