"""The audit log over HTTP and on the command line: who did what, and is it still what it was."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from pymongo.database import Database
from starlette.testclient import TestClient

from superduper.command import Role
from superduper.store.audit import NAME, Audit, broken_link
from superduper_server.cli_root import superduper
from superduper_server.tokens import Tokens
from tests.server.running import running


def actions(database: Database[Any]) -> list[tuple[str, str]]:
    return [(entry["action"], entry["outcome"]) for entry in Audit(database).entries()]


def test_what_takes_a_trainer_is_noted(client: TestClient, database: Database[Any]) -> None:
    before = len(actions(database))
    client.delete("/v1/collections/docs/models/nothing")
    client.put("/v1/collections/docs/models/thing", json={"sealed": {}})
    client.post("/v1/collections/docs/imputations/none/refit")
    client.post("/v1/jobs/nothing/cancel")
    noted = actions(database)[before:]
    assert [action for action, _ in noted] == [
        *["DeleteComponent"] * 2,
        *["RegisterComponent"] * 2,
        *["RefitImputation"] * 2,
        *["CancelJob"] * 2,
    ]
    outcomes = [outcome for _, outcome in noted]
    assert outcomes[::2] == ["asked"] * 4
    assert all(outcome.startswith("failed: ") for outcome in outcomes[1::2])


def test_who_it_was_and_to_what(client: TestClient, database: Database[Any]) -> None:
    client.delete("/v1/collections/docs/models/nothing", params={"version": 3})
    entry = Audit(database).last(1)[0]
    assert entry["who"] == Tokens(database).list()[0]["id"]
    assert entry["subject"] == "collection=docs kind=model name=nothing version=3"


def test_tokens_are_noted(client: TestClient, database: Database[Any]) -> None:
    made = client.post("/v1/tokens", json={"role": "reader"}).json()
    client.delete(f"/v1/tokens/{made['id']}")
    create, revoke = Audit(database).last(2)
    assert (create["action"], create["subject"]) == (
        "CreateToken",
        f"id={made['id']} role=reader",
    )
    assert (revoke["action"], revoke["subject"]) == ("RevokeToken", f"id={made['id']}")
    assert create["who"] == revoke["who"] == Tokens(database).list()[0]["id"]
    assert made["token"] not in str(list(Audit(database).entries()))


def test_reading_and_inserting_are_not(client: TestClient, database: Database[Any]) -> None:
    before = actions(database)
    client.post("/v1/collections/docs/documents", json={"documents": [{"a": 1}]})
    client.post("/v1/collections/docs/documents/query", json={})
    assert actions(database) == before


def test_administrators_may_read_it(
    client: TestClient, stranger: TestClient, token_of: Callable[[Role], str]
) -> None:
    header = {"Authorization": f"Bearer {token_of('trainer')}"}
    assert stranger.get("/v1/audit", headers=header).status_code == 403
    newest = client.get("/v1/audit", params={"limit": 1}).json()
    assert [row["number"] for row in newest] == [2]
    everything = client.get("/v1/audit", params={"after": 0}).json()
    assert [row["action"] for row in everything] == ["CreateToken", "CreateToken"]
    assert broken_link([{"_id": row.pop("number"), **row} for row in everything]) is None
    assert client.get("/v1/audit", params={"limit": 0}).status_code == 422


class TestCommandLine:
    """`superduper audit`."""

    @pytest.fixture
    def invoke(self, database: Database[Any], store_uri: str) -> Callable[..., Any]:
        def call(*arguments: str, uri: str = store_uri) -> Any:
            options = ("--uri", uri, "--database", database.name)
            return CliRunner().invoke(superduper, ["audit", *arguments, *options])

        return call

    def test_list(self, invoke: Callable[..., Any], database: Database[Any]) -> None:
        Tokens(database).create("reader", author="eve")
        rows = json.loads(invoke("list", "--json").stdout)
        assert [(row["number"], row["who"], row["action"]) for row in rows] == [
            (1, "eve", "CreateToken")
        ]
        assert "CreateToken" in invoke("list").stdout

    def test_verify(self, invoke: Callable[..., Any], database: Database[Any]) -> None:
        assert json.loads(invoke("verify", "--json").stdout) == {"entries": 0, "noted": None}
        for _ in range(3):
            Tokens(database).create("reader", author="eve")
        noted = json.loads(invoke("verify", "--json").stdout)["noted"]
        assert noted.startswith("3:")
        assert invoke("verify", "--noted", noted).exit_code == 0
        database[NAME].update_one({"_id": 2}, {"$set": {"who": "bob"}})
        broken = invoke("verify")
        assert broken.exit_code == 1
        assert broken.stderr == "superduper: entry 2 was changed after it was written\n"
        database[NAME].delete_many({})
        cut = invoke("verify", "--noted", noted)
        assert cut.exit_code == 1 and "its end is gone" in cut.stderr

    def test_a_note_that_is_none(self, invoke: Callable[..., Any]) -> None:
        assert "--noted 'x'" in invoke("verify", "--noted", "x").stderr

    def test_over_http(
        self,
        invoke: Callable[..., Any],
        database: Database[Any],
        store_uri: str,
        tmp_path: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        arguments = ("serve", "--uri", store_uri, "--database", database.name, "--port", "0")
        with running(tmp_path / "log", *arguments, "--json") as server:
            monkeypatch.setenv("SUPERDUPER_TOKEN", server.ready["token"])
            url = server.ready["url"]
            rows = CliRunner().invoke(superduper, ["audit", "list", "--uri", url, "--json"])
            assert [row["action"] for row in json.loads(rows.stdout)] == ["CreateToken"]
            good = CliRunner().invoke(superduper, ["audit", "verify", "--uri", url, "--json"])
            assert json.loads(good.stdout)["entries"] == 1
            database[NAME].update_one({"_id": 1}, {"$set": {"who": "bob"}})
            bad = CliRunner().invoke(superduper, ["audit", "verify", "--uri", url])
            assert bad.exit_code == 1 and "entry 1 was changed" in bad.stderr
            assert f"audit 1 {rows and json.loads(rows.stdout)[0]['hash']}" in server.log()
