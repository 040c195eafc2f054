"""Commands that stay, as processes: store, up, work."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo.database import Database

from superduper.imputations.imputation import Imputations
from superduper.jobs.worker import alive_workers
from superduper.store.folder import Folder
from tests.server.running import CLI, run, running
from tests.waiting import until


def test_a_store_for_any_client(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with running(tmp_path / "log", "store", "--path", str(path), "--json") as store:
        assert store.ready.keys() == {"address"}
        with pymongo.MongoClient[dict[str, Any]](store.ready["address"]) as client:
            client["any"]["docs"].insert_one({"_id": 1})
        with running(tmp_path / "second", "store", "--path", str(path), "--json") as second:
            assert second.ready == store.ready
        assert store.end() == 0
    until(lambda: not Folder(path).has_keeper(), what="the store to close")
    with (
        running(tmp_path / "again", "store", "--path", str(path), "--json") as again,
        pymongo.MongoClient[dict[str, Any]](again.ready["address"]) as client,
    ):
        assert client["any"]["docs"].find_one() == {"_id": 1}


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGINT, 2)]
)
def test_all_in_one(tmp_path: Path, number: signal.Signals, workers: int) -> None:
    path = tmp_path / "data"
    arguments = ("up", "--path", str(path), "--database", "shop", "--port", "0", "--json")
    arguments += ("--workers", str(workers))
    with running(tmp_path / "log", *arguments) as up:
        assert up.ready.keys() == {"url", "token", "address"}
        with up.http() as http:
            made = http.post("/v1/collections/docs/documents", json={"documents": [{"x": 1}]})
            assert made.status_code == 201
            assert http.get("/v1/status").json()["database"] == "shop"
        with pymongo.MongoClient[dict[str, Any]](up.ready["address"]) as client:
            assert client["shop"]["docs"].count_documents({}) == 1
        place = ("--uri", f"embedded:{path}", "--database")
        alive = ("status", *place, "shop", "--alive")
        until(lambda: run(*alive).returncode == 0, what="a worker of a database without work")
        shown = run("status", *place, "shop")
        assert shown.returncode == 0, shown.stderr
        assert "shop" in shown.stdout and "No worker" not in shown.stdout
        assert "No worker is alive" in run("status", *place, "other").stdout
        assert up.end(number) == 0, up.log()
        assert "Traceback" not in up.log()
        assert up.ready["token"] not in up.log()
    until(lambda: not Folder(path).has_keeper(), what="the store to close")


def test_what_people_see(tmp_path: Path) -> None:
    command = [*CLI, "up", "--path", str(tmp_path / "data"), "--port", "0"]
    with (tmp_path / "log").open("wb") as log:
        up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert up.stdout is not None
    lines = [up.stdout.readline() for _ in range(4)]
    assert lines[0].startswith("url      http://127.0.0.1:")
    assert lines[1].startswith("token    sd_")
    assert lines[2].startswith("address  mongodb://127.0.0.1:")
    assert "shown this once" in lines[3]
    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 0
    up.stdout.close()


def pids(workers: list[dict[str, Any]]) -> set[int]:
    return {worker["pid"] for worker in workers}


def test_a_worker_until_it_is_stopped(
    store_uri: str, database: Database[Any], tmp_path: Path
) -> None:
    Imputations(database).documents.insert_one({"_id": "none/none", "gone": True})
    Imputations(database).documents.delete_many({})
    env = {**os.environ, "SUPERDUPER_URI": store_uri, "SUPERDUPER_DATABASE": database.name}
    command = [*CLI, "work", "--uri", store_uri, "--database", database.name]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, stderr=log, env=env)
    try:
        # Others may work for every database of the store, this one included.
        until(lambda: worker.pid in pids(alive_workers(database)), what="the worker to be alive")
        alive = subprocess.run([*CLI, "status", "--alive", "--json"], env=env, capture_output=True)
        assert alive.returncode == 0, alive.stderr
        assert worker.pid in pids(json.loads(alive.stdout)["workers"])
        assert "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text()
    finally:
        worker.terminate()
        code = worker.wait(60)
    assert code == 0, (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
