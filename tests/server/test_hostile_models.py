"""Models that do harm when they are asked: the server goes on, and so do its other models."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import superduper_client
from superduper.jobs import landlock
from tests.server.running import Running, running

PREDICT = "/v1/collections/docs/models/{}/predict"


def double(value: Any) -> float:
    return 2 * float(value)


def segfault(value: Any) -> Any:
    import ctypes

    return ctypes.string_at(0)


def fill_memory(value: Any) -> Any:
    kept = []
    while True:
        kept.append([object() for _ in range(100_000)])


def start_processes(value: Any) -> Any:
    import os
    import time

    end = time.monotonic() + 15
    while time.monotonic() < end:
        os.fork()


def leave(value: Any) -> Any:
    import sys

    sys.exit(3)


def go_on_for_ever(value: Any) -> Any:
    while True:
        pass


def answer_a_billion(value: Any) -> Any:
    import torch

    return torch.zeros(1).expand(10**9)


def answer_without_end(value: Any) -> Any:
    import itertools

    return itertools.count()


def write_outside(value: Any) -> Any:
    with open(value, "w") as file:
        file.write("gone")


def end_the_server(value: Any) -> Any:
    import os
    import signal

    os.kill(value, signal.SIGKILL)


def read_its_environment(value: Any) -> Any:
    with open(f"/proc/{value}/environ", "rb") as file:
        return len(file.read())


HARM: dict[Any, tuple[set[int], str]] = {
    segfault: ({503}, "SIGSEGV"),
    fill_memory: ({422, 503}, ""),
    start_processes: ({503, 504}, ""),
    leave: ({422}, "sys.exit(3)"),
    go_on_for_ever: ({504}, ""),
    answer_a_billion: ({413, 422, 503}, ""),
    answer_without_end: ({413, 422, 503, 504}, ""),
    write_outside: ({422}, "Permission denied"),
    end_the_server: ({422}, "Operation not permitted"),
    read_its_environment: ({422}, "Permission denied"),
}


NEED_LANDLOCK = (write_outside, end_the_server, read_its_environment)


# What would go on for as long as it is let; the others have the time that they need.
ENDLESS = (start_processes, go_on_for_ever, answer_without_end)
SECONDS = {True: 4, False: 40}


@contextlib.contextmanager
def serving(store_uri: str, folder: Path, seconds: int) -> Iterator[Running]:
    """A server whose models have so many seconds for an answer."""
    arguments = ("serve", "--uri", store_uri, "--database", "hostile_models", "--port", "0")
    settings = {
        "SUPERDUPER_HOME": str(folder / "home"),
        "SUPERDUPER_CHILD_MEMORY_MB": "1024",
        "SUPERDUPER_PREDICT_TIMEOUT": str(seconds),
    }
    log = folder / f"log-{seconds}"
    with running(log, *arguments, "--json", "--insecure", **settings) as found:
        yield found


@pytest.fixture(scope="module")
def servers(
    store_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[bool, Running]]:
    """Two servers of the same models: one for those that are endless."""
    folder = tmp_path_factory.mktemp("hostile")
    with contextlib.ExitStack() as stack:
        found = {
            endless: stack.enter_context(serving(store_uri, folder, seconds))
            for endless, seconds in SECONDS.items()
        }
        with superduper_client.connect(found[False].ready["url"]) as client:
            for model in (double, *HARM):
                client["hostile_models"]["docs"].create_model(model.__name__, model)
        yield found


@pytest.mark.parametrize("model", HARM, ids=lambda model: model.__name__)
def test_it_is_contained(servers: dict[bool, Running], tmp_path: Path, model: Any) -> None:
    if model in NEED_LANDLOCK and landlock.version() < landlock.SCOPES_SINCE:
        pytest.skip("needs Landlock 6 (Linux 6.12)")
    server = servers[model in ENDLESS]
    precious = tmp_path / "precious"
    precious.write_text("here")
    given: dict[Any, Any] = {write_outside: str(precious)}
    value = given.get(model, server.process.pid)
    with httpx2.Client(base_url=server.ready["url"], timeout=60) as http:
        answer = http.post(PREDICT.format(model.__name__), json={"inputs": [value]})
        statuses, told = HARM[model]
        assert answer.status_code in statuses, answer.text
        assert told in answer.text and len(answer.content) < 4096
        honest = http.post(PREDICT.format("double"), json={"inputs": [4]})
    assert honest.json()["outputs"] == [8.0]
    assert precious.read_text() == "here"
    assert server.process.poll() is None
