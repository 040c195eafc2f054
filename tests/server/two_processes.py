"""A server with two HTTP processes, and who asks each of them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
from pymongo.database import Database

from superduper.collection import Collection
from tests.server.running import Running, running
from tests.waiting import until


def process(value: str) -> int:
    """The model's process, unless it is to end or to wait."""
    import os
    import time

    if value == "die":
        os._exit(3)
    if value == "wait":
        time.sleep(1.5)
    return os.getpid()


class Two:
    """A server with two HTTP processes, and a client that has a connection to each."""

    def __init__(self, server: Running, database: str) -> None:
        self.server = server
        self.database = database
        self.hub = psutil.Process(server.process.pid)
        self.clients = contextlib.ExitStack()

    def processes(self) -> list[psutil.Process]:
        """The HTTP processes."""
        return [each for each in self.hub.children() if is_http(each)]

    def both(self) -> tuple[httpx2.Client, httpx2.Client]:
        """A client of each of the processes: a request's id begins with its process's mark."""
        found: dict[str, httpx2.Client] = {}

        def is_complete() -> bool:
            client = self.clients.enter_context(self.server.http(timeout=60))
            with contextlib.suppress(httpx2.TransportError):
                found.setdefault(mark(client.get("/healthz")), client)
            return len(found) == 2

        until(is_complete, what="a connection to each process")
        first, second = found.values()
        return first, second


def mark(response: httpx2.Response) -> str:
    return str(response.headers["x-request-id"]).partition("-")[0]


@contextlib.contextmanager
def two(store_uri: str, database: Database[Any], log: Path, **environment: str) -> Iterator[Two]:
    arguments = ("serve", "--uri", store_uri, "--database", database.name, "--port", "0", "--json")
    with running(log, *arguments, "--workers", "2", **environment) as server:
        found = Two(server, database.name)
        with found.clients:
            yield found


def path_of(docs: Collection, model: str) -> str:
    """Where a model is asked."""
    return f"/v1/collections/{docs.name}/models/{model}/predict"


def ask(client: httpx2.Client, docs: Collection, model: str, value: Any) -> httpx2.Response:
    return client.post(path_of(docs, model), json={"inputs": [value]})


def is_http(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # it has just ended
        return "http_process" in " ".join(process.cmdline())
    return False
