"""Every behaviour test runs twice: in this process, and over HTTP against a real server."""

import contextlib
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.collection import Collection as MongoCollection
from pymongo.database import Database

import superduper_client
from superduper.collection import Collection
from superduper.connection import LocalTransport
from superduper.store.mongo import connect_mongo
from superduper_server.serve import make_server
from tests.waiting import until


@pytest.fixture(scope="module")
def worker(store_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One worker process for all databases of the store; it would work for other tests too."""
    log = Path(tmp_path_factory.mktemp("worker")) / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "superduper.imputations.work", store_uri],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        yield
        process.terminate()
        assert process.wait(timeout=30) == 0, log.read_text()[-4000:]


@contextlib.contextmanager
def serving(database: Database[Any]) -> Iterator[str]:
    """A real server on a port of the system's choice, in a thread."""
    server = make_server(database, port=0, insecure=True)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, what="the server")
    yield server.url
    server.should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive()


class Place:
    """A fresh database with its collections, as the facade of one transport shows them."""

    def __init__(
        self, uri: str, database: Database[Any], facade: Callable[[str], Collection]
    ) -> None:
        #: What a program of its own connects to.
        self.uri = uri
        self.database = database
        self.facade = facade
        self.count = 0

    def fresh(self) -> Collection:
        """A collection that nobody has used."""
        self.count += 1
        return self.facade(f"docs{self.count}")


@pytest.fixture(scope="module", params=["here", "over_http"])
def place(request: pytest.FixtureRequest, store_uri: str) -> Iterator[Place]:
    """One database on one transport and then on the other."""
    with connect_mongo(store_uri) as mongo, contextlib.ExitStack() as stack:
        database = mongo[f"behaviour_{uuid.uuid4().hex[:12]}"]
        if request.param == "here":
            transport = stack.enter_context(contextlib.closing(LocalTransport(database)))
            facade = lambda name: Collection(transport, name, database[name])  # noqa: E731
            yield Place(store_uri, database, facade)
        else:
            url = stack.enter_context(serving(database))
            client = stack.enter_context(superduper_client.connect(url))
            yield Place(url, database, client[database.name].__getitem__)
        mongo.drop_database(database.name)


@pytest.fixture
def docs(place: Place) -> Collection:
    """A fresh collection."""
    return place.fresh()


@pytest.fixture
def native(docs: Collection, place: Place) -> MongoCollection[Any]:
    """The same collection as plain pymongo has it."""
    return place.database[docs.name]
