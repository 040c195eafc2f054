"""Server and worker on a database with TLS and passwords, as the users of scripts/mongo_users.js.

MongoDB is not at hand; the embedded store's server checks users, databases and actions, though not
for single collections, and speaks TLS.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pymongo import MongoClient
from pymongo.errors import OperationFailure, ServerSelectionTimeoutError

import superduper
from tests.behaviour.definitions import DIM, SETTINGS, documents, register
from tests.server.running import CLI, running
from tests.server.secured_store import PASSWORD, SecuredStore, needs_program
from tests.waiting import until

SCRIPT = Path(__file__).parents[2] / "scripts" / "mongo_users.js"
pytestmark = needs_program


def actions_of(role: str) -> list[str]:
    """What the script lets a user do, everywhere in its database: the sum of its rights."""
    text = SCRIPT.read_text()
    read, add = (re.search(rf"const {name} = \[(.*)\]", text) for name in ("READ", "ADD"))
    begins = text.index(f"  {role}: [")
    its_own = text[begins : text.index("\n  ],", begins)]
    assert read and add and "...READ" in add[1]
    told = (read[1], add[1], its_own) if "ADD" in its_own else (read[1], its_own)
    return sorted({*re.findall(r'"(\w+)"', " ".join(told))} - {"audit", "tokens", "imputations"})


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredStore]:
    store = SecuredStore(tmp_path_factory.mktemp("secured"))
    with store.open_to_all() as client:
        for user, role in (("server", "superduperServer"), ("worker", "superduperWorker")):
            actions = actions_of(role)
            everywhere = {"resource": {"db": "main", "collection": ""}, "actions": actions}
            client["main"].command("createRole", role, privileges=[everywhere], roles=[])
            roles = [{"role": role, "db": "main"}]
            client.admin.command("createUser", user, pwd=PASSWORD, roles=roles)
    with store.secured():
        yield store


def test_a_server_needs_no_more_rights_than_the_script_gives(
    secured: SecuredStore, tmp_path: Path
) -> None:
    environment = {"SUPERDUPER_URI": secured.uri("server"), "SUPERDUPER_HOME": str(tmp_path / "h")}
    arguments = ("serve", "--database", "main", "--port", "0", "--json")
    with running(tmp_path / "log", *arguments, **environment) as server, server.http() as http:
        documents = "/v1/collections/docs/documents"
        made = http.post(documents, json={"documents": [{"_id": 1, "x": 2}]})
        assert made.status_code == 201, made.text
        found = http.post(f"{documents}/query", json={"filter": {"x": 2}})
        assert found.json()["documents"] == [{"_id": 1, "x": 2}]
        assert http.get("/v1/status").status_code == 200
    assert "not authorized" not in server.log()


def test_a_worker_needs_no_more_rights_than_the_script_gives(
    secured: SecuredStore, tmp_path: Path
) -> None:
    command = [*CLI, "work", "--database", "main"]
    environment = {**os.environ, "SUPERDUPER_URI": secured.uri("worker")}
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, stderr=log, env=environment)
    try:
        with superduper.connect(secured.uri("server")) as client:
            docs = client["main"]["shop"]
            docs.insert_many(documents(120, labelled=80))
            register(docs)
            imputation = docs.create_imputation(**SETTINGS).wait(timeout=120, progress=False)
            docs.insert_one({"_id": "later", "x": torch.zeros(DIM)})
            until(lambda: "y" in (docs.find_one("later") or {}), what="the later document")
            docs.update_one({"_id": "later"}, {"$set": {"y": "dog, rather"}})
            until(lambda: imputation.corrections(), what="the correction")
            assert imputation.counts()["filled"] == 40
    finally:
        worker.terminate()
        worker.wait(60)
    told = (tmp_path / "log").read_text()
    assert "not authorized" not in told and "Traceback" not in told, told


def test_that_user_drops_nothing_and_reaches_nothing_else(secured: SecuredStore) -> None:
    with MongoClient[dict[str, Any]](secured.uri("server")) as client:
        for refused in (
            lambda: client["main"].drop_collection("docs"),
            lambda: client["other"]["docs"].find_one(),
            lambda: client["other"]["docs"].insert_one({}),
            lambda: client.admin.command("createUser", "e", pwd="p", roles=["root"]),
        ):
            with pytest.raises(OperationFailure, match="not authorized"):
                refused()


def test_nobody_comes_without_a_password_or_without_tls(secured: SecuredStore) -> None:
    with (
        MongoClient[dict[str, Any]](secured.uri()) as client,
        pytest.raises(OperationFailure, match="requires authentication"),
    ):
        client["main"]["docs"].find_one()
    plain = f"mongodb://127.0.0.1:{secured.port}/"
    with (
        MongoClient[dict[str, Any]](plain, serverSelectionTimeoutMS=2000) as client,
        pytest.raises(ServerSelectionTimeoutError),
    ):
        client["main"]["docs"].find_one()
