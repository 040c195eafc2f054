"""Several HTTP processes that have limits together, and that end together."""

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from pymongo.database import Database

import superduper_client
from superduper.collection import Collection
from tests.server.running import run
from tests.server.two_processes import Two, ask, is_http, process, two
from tests.waiting import until

FEW = {"SUPERDUPER_TOKEN_AT_ONCE": "4", "SUPERDUPER_ADDRESS_CONNECTIONS": "6"}


def test_limits_are_of_both_together(
    store_uri: str, database: Database[Any], tmp_path: Path
) -> None:
    with two(store_uri, database, tmp_path / "log", **FEW) as served:
        ready = served.server.ready
        with superduper_client.connect(ready["url"], ready["token"]) as client:
            docs = client[database.name]["docs"]
            docs.create_model("process", process)
        _check_rate(served)
        _check_at_once(served, docs)
        _check_connections(served)
        _check_failures(served)


def _check_rate(served: Two) -> None:
    first, second = served.both()
    token = first.post("/v1/tokens", json={"role": "reader", "rate": 2}).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    began = time.monotonic()
    statuses = [
        client.get("/v1/status", headers=headers).status_code
        for _ in range(8)
        for client in (first, second)
    ]
    most = 2 + 2 * (time.monotonic() - began)
    assert 2 <= statuses.count(200) <= most and statuses.count(429) == 16 - statuses.count(200)
    served.clients.close()


def _check_at_once(served: Two, docs: Collection) -> None:
    first, second = served.both()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask, each, docs, "process", "wait") for each in (first, second) * 2]
        with served.server.http() as http:
            until(lambda: http.get("/v1/status").status_code == 429, what="four at once")
        assert [each.result().status_code for each in waiting] == [200] * 4
    assert first.get("/v1/status").status_code == 200
    served.clients.close()


def _check_connections(served: Two) -> None:
    with contextlib.ExitStack() as clients:
        answered = 0
        for _ in range(10):
            client = clients.enter_context(served.server.http())
            with contextlib.suppress(httpx2.TransportError):
                answered += client.get("/healthz").status_code == 200
        assert 4 <= answered <= 6  # those that were just closed may count for a moment


def _check_failures(served: Two) -> None:
    first, second = served.both()
    wrong = {"Authorization": f"Bearer sd_aaaaaaaa_{'x' * 43}"}
    statuses = [
        client.get("/v1/status", headers=wrong).status_code
        for _ in range(6)
        for client in (first, second)
    ]
    assert statuses == [401] * 10 + [429] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(
    store_uri: str, database: Database[Any], tmp_path: Path, number: signal.Signals
) -> None:
    with two(store_uri, database, tmp_path / "log") as served:
        ready = served.server.ready
        with superduper_client.connect(ready["url"], ready["token"]) as client:
            docs = client[database.name]["docs"]
            docs.create_model("process", process)
            model = docs.predict("process", "pid")
        started = [each for each in served.hub.children(recursive=True)]
        assert model in {each.pid for each in started} and len(served.processes()) == 2
        code = served.server.end(number)
        assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        until(lambda: not any(map(is_alive, started)), what="all to end")


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_one_that_cannot_start_is_told(store_uri: str, tmp_path: Path) -> None:
    arguments = ("serve", "--uri", store_uri, "--database", "none", "--port", "0")
    ended = run(*arguments, "--workers", "2", SUPERDUPER_BODY_LIMIT_MB="much")
    assert ended.returncode == 1
    assert "SUPERDUPER_BODY_LIMIT_MB='much' is not a number" in ended.stderr
    assert not [each for each in psutil.Process(os.getpid()).children() if is_http(each)]
