"""What goes wrong in the middle: a database that dies, a disk that is full."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import superduper
import superduper_client
from superduper.collection import Collection
from superduper.connection import LocalTransport
from superduper.errors import NotFound, NotReady
from superduper.store.embedded import attach
from superduper.store.mongo import connect_mongo
from tests.server.running import running
from tests.store.conftest import StoreFolder
from tests.waiting import until

SECONDS_AT_MOST = 25.0


def operations(docs: Collection) -> dict[str, Callable[[], object]]:
    """One of each kind."""
    return {
        "insert": lambda: docs.insert_one({"n": 1}),
        "find": lambda: list(docs.find()),
        "register": lambda: docs.create_function("half", lambda n: n / 2),
        "declare": lambda: docs.create_watcher("again", model="double", key="n", target="k"),
        "show": lambda: docs.imputation("doubles").counts(),
        "predict": lambda: docs.predict("treble", 1),
    }


def seconds_until_refused(operation: Callable[[], object]) -> float:
    """How long it takes until the operation says that the database is not there."""
    began = time.monotonic()
    with pytest.raises(NotReady):
        operation()
    return time.monotonic() - began


def works(operation: Callable[[], object]) -> bool:
    """Whether an operation goes through."""
    try:
        operation()
    except NotReady:
        return False
    return True


def test_a_database_that_dies_is_said_and_the_same_clients_go_on(
    store: StoreFolder, tmp_path: Path
) -> None:
    uri = f"embedded:{store.path}"
    arguments = ("--uri", uri, "--database", "shop", "--port", "0", "--json")
    with (
        superduper.connect(uri) as client,
        running(tmp_path / "serve.log", "serve", *arguments) as server,
        superduper_client.connect(server.ready["url"], server.ready["token"]) as over_http,
    ):
        docs, remote = client["shop"]["docs"], over_http["shop"]["docs"]
        docs.create_model("double", lambda n: n * 2)
        docs.create_model("treble", lambda n: n * 3)
        docs.create_watcher("doubles", model="double", key="n", target="m")
        docs.insert_one({"_id": 1, "n": 4})
        until(lambda: (remote.find_one(1) or {}).get("m") == 8, what="the first document")
        (keeper,), (dead,) = store.keepers(), store.servers()
        keeper.suspend()  # so that it does not start another
        dead.kill()
        until(lambda: dead.status() == psutil.STATUS_ZOMBIE, what="its end")
        tried = [*operations(docs).values()]
        tried += [operations(remote)[name] for name in ("insert", "find", "show")]
        with ThreadPoolExecutor(len(tried)) as pool:
            assert max(pool.map(seconds_until_refused, tried)) < SECONDS_AT_MOST
        with server.http() as http:
            assert http.get("/healthz").status_code == 200
            assert http.get("/readyz").status_code == 503
        keeper.resume()
        until(lambda: works(lambda: remote.insert_one({"_id": 2, "n": 5})), what="the database")
        docs.insert_one({"_id": 3, "n": 6})
        until(lambda: docs.count_documents({"m": {"$exists": True}}) >= 3, what="the fills")
        assert [row["name"] for row in docs.list("imputation")] == ["doubles"]
        assert remote.predict("treble", [1, 2]) == [3, 6]


def test_a_full_disk_leaves_nothing_half_registered(
    store: StoreFolder, small_disk: Callable[[], object]
) -> None:
    with attach(store.path) as attachment, connect_mongo(attachment.address) as client:
        transport = LocalTransport(client["shop"])
        docs = Collection(transport, "docs", client["shop"]["docs"])
        weight = os.urandom(1_500_000)
        with pytest.raises(NotReady, match=f"disk of the store at {store.path} is full"):
            for number in range(100):
                docs.create_model(f"model{number}", lambda n, w=weight: n + len(w))
                weight = os.urandom(1_500_000)
        assert number > 0
        small_disk()
        until(lambda: works(lambda: docs.count_documents({})), what="the database")
        with pytest.raises(NotFound):
            docs.show("model", f"model{number}")
        assert [row["name"] for row in docs.list("model")] == [f"model{i}" for i in range(number)]
        made = docs.create_model(f"model{number}", lambda n, w=weight: n + len(w))
        assert made["version"] == 1
        assert docs.predict(f"model{number}", 1) == 1_500_001
        assert docs.predict("model0", 1) == 1_500_001
        transport.close()
