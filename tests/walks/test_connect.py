"""Connecting: many programs on one store, each kind of address, and what is refused."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymongo
import pytest

import superduper
from superduper.errors import InvalidInput, NotReady, Unauthorized
from tests.server.running import running
from tests.waiting import until
from tests.walks.programs import Program, command_of, environment, processes_of

RUNNING = ["secantus", "superduper.imputations.work", "superduper.store.keeper"]

MANY = """
import os
import superduper

docs = superduper.connect()["shop"]["documents"]
number = int(os.environ["NUMBER"])
docs.insert_one({"_id": number, "text": "ab"})
if number == 0:
    docs.create_model("upper", str.upper)
    docs.create_watcher("shout", model="upper", key="text", target="loud")
print("ready", flush=True)
input()
docs.insert_one({"_id": 100 + number, "text": "cd"})
docs.imputation("shout").wait(60)
print(docs.count_documents({}), flush=True)
input()
"""

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it is an error
import numpy
import superduper_client
from superduper.errors import NotFound

class Total:
    def __init__(self, start):
        self.start = start

    def predict(self, vectors):
        return [self.start + float(sum(vector)) for vector in vectors]

with superduper_client.connect() as client:
    docs = client["shop"]["documents"]
    docs.insert_many([{"_id": i, "x": numpy.full(3, i, "float32")} for i in range(20)])
    docs.create_model("total", Total(0.5), sample=numpy.ones(3, "float32"))
    imputation = docs.create_watcher("totals", model="total", key="x", target="sum")
    imputation.wait(60)
    print(imputation)
    docs.insert_one({"_id": 20, "x": numpy.full(3, 20, "float32")})
    imputation.wait(60)
    while docs.count_documents({"sum": {"$exists": True}}) < 21:
        pass
    found = docs.find_one({"_id": 20})
    print(found["x"].dtype, found["sum"], docs.find_one({"_id": 2})["sum"])
    print(docs.predict("total", numpy.zeros(3)), imputation.predict([[1.0, 2.0], [3.0]]))
    try:
        docs.imputation("nothing")
    except NotFound as error:
        print(error)
    assert sys.modules["torch"] is None
"""


@pytest.fixture
def free_port() -> int:
    """A loopback port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def modules_in(folder: Path) -> list[str]:
    """What runs of ours for a store: modules, without the children of its worker."""
    commands = [command_of(process) for process in processes_of(folder)]
    modules = [line[line.index("-m") + 1] for line in commands if "-m" in line]
    return sorted(name for name in modules if "child" not in name)


def test_programs_at_once_share_store_and_worker_and_one_may_be_killed(tmp_path: Path) -> None:
    uri = f"embedded:{tmp_path / 'data'}"
    programs = [
        Program(MANY, tmp_path, SUPERDUPER_URI=uri, NUMBER=str(number)) for number in range(4)
    ]
    assert [program.line() for program in programs] == ["ready"] * 4
    until(lambda: "superduper.imputations.work" in modules_in(tmp_path), what="the worker")
    assert not (tmp_path / "superduper-data").exists()  # SUPERDUPER_URI says where
    assert modules_in(tmp_path) == [
        "secantus",
        "superduper.imputations.work",
        "superduper.store.keeper",
    ]
    programs.pop(0).kill()
    for program in programs:
        program.go_on()
    counted = [int(program.line()) for program in programs]
    assert max(counted) == 7
    with superduper.connect(uri, worker="none") as client:
        docs = client["shop"]["documents"]
        until(lambda: docs.count_documents({"loud": {"$exists": True}}) == 7, what="all seven")
        for program in programs:
            assert program.end() == 0
        assert docs.find_one({"_id": 103})["loud"] == "CD"
    until(lambda: not processes_of(tmp_path), what="the store to close")


def test_a_standalone_server_is_told_what_to_do(secantus: Callable[..., str]) -> None:
    with pytest.raises(NotReady) as caught:
        superduper.connect(secantus("--standalone"))
    for word in ("standalone", "--replSet rs0", "rs.initiate()"):
        assert word in caught.value.message


@pytest.mark.parametrize("uri", ["redis://h:1", "shop", "./superduper-data", "ftp://h"])
def test_an_unknown_kind_of_address(uri: str) -> None:
    with pytest.raises(InvalidInput, match="embedded:, mongodb:// or http://") as caught:
        superduper.connect(uri)
    assert uri in caught.value.message


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "shop\n", "a b", "$a", "x" * 64])
def test_what_can_be_no_database(store_uri: str, name: str) -> None:
    with (
        superduper.connect(store_uri) as client,
        pytest.raises(InvalidInput, match="not a valid name for a database"),
    ):
        client[name]


def test_an_unknown_choice_of_worker() -> None:
    with pytest.raises(InvalidInput, match="'auto' or 'none'"):
        superduper.connect(worker="sometimes")  # type: ignore[arg-type]


def test_a_dead_database_is_named_soon_and_without_its_password(free_port: int) -> None:
    began = time.monotonic()
    with pytest.raises(NotReady, match=re.escape(f"me:***@127.0.0.1:{free_port}")) as caught:
        superduper.connect(f"mongodb://me:secret@127.0.0.1:{free_port}/?replicaSet=rs0")
    assert time.monotonic() - began < 12
    assert "secret" not in caught.value.message
    assert "Connection refused): start it, or check its address" in caught.value.message


def test_no_server_where_one_should_be(free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    with superduper.connect(url, token="sd_x") as client, pytest.raises(NotReady, match=url):
        client["shop"]["documents"].count_documents({})


def test_a_client_without_torch_does_the_main_job(store_uri: str, tmp_path: Path) -> None:
    more = {"SUPERDUPER_URI": store_uri, "SUPERDUPER_DATABASE": "shop"}
    command = [sys.executable, "-m", "superduper_server.cli", "work", "--database", "shop"]
    with (
        running(tmp_path / "serve.log", "serve", "--port", "0", "--json", **more) as server,
        (tmp_path / "work.log").open("wb") as log,
        subprocess.Popen(command, env=environment(**more), stderr=log) as worker,
    ):
        url = server.ready["url"]
        with superduper.connect(url, token="sd_wrong") as client, pytest.raises(Unauthorized):
            client["shop"]["documents"].count_documents({})
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH],
            env=environment(SUPERDUPER_URI=url, SUPERDUPER_TOKEN=server.ready["token"]),
            capture_output=True,
            text=True,
            timeout=120,
        )
        worker.terminate()
    with pymongo.MongoClient[dict[str, Any]](store_uri) as mongo:
        mongo.drop_database("shop")
    assert done.returncode == 0, done.stderr
    shown, found, predicted, missing = done.stdout.splitlines()
    assert shown == "<Imputation 'totals': x → sum, watching, version 1>"
    assert found == "float32 60.5 6.5"
    assert predicted == "0.5 [3.5, 3.5]"
    assert "nothing" in missing and "totals" in missing
