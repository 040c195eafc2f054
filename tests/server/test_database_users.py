"""A server on a database with TLS and passwords, as the user that scripts/mongo_users.js makes.

MongoDB is not at hand; the embedded store's server checks users, databases and actions, though not
for single collections, and speaks TLS.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure, ServerSelectionTimeoutError

from tests.server.running import running
from tests.server.secured_store import PASSWORD, SecuredStore, needs_program

SCRIPT = Path(__file__).parents[2] / "scripts" / "mongo_users.js"
pytestmark = needs_program


def actions_of_server() -> list[str]:
    """What the script lets the server's user do, everywhere in its database."""
    text = SCRIPT.read_text()
    lists = text[text.index("const READ") : text.index("superduperWorker: [")]
    return sorted({*re.findall(r'"(\w+)"', lists)} - {"audit", "tokens"})


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredStore]:
    store = SecuredStore(tmp_path_factory.mktemp("secured"))
    with store.open_to_all() as client:
        everywhere = {"resource": {"db": "main", "collection": ""}, "actions": actions_of_server()}
        client["main"].command("createRole", "superduperServer", privileges=[everywhere], roles=[])
        roles = [{"role": "superduperServer", "db": "main"}]
        client.admin.command("createUser", "server", pwd=PASSWORD, roles=roles)
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
