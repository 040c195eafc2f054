"""Secrets that are known beforehand, and everything that is said while they are in use."""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from superduper.store.logs import Discreet
from superduper.store.signing import Keyring
from superduper_server.tokens import Tokens
from tests.server.running import Running, run, running

PASSWORD = "geheim-hunter2-geheim"
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")


@pytest.fixture
def secret_uri(store_uri: str, database: Database[Any]) -> Iterator[str]:
    """An address of the store with a password in it."""
    with MongoClient[dict[str, Any]](store_uri) as client:
        name = database.name
        client.admin.command("createUser", name, pwd=PASSWORD, roles=["root"])
        yield store_uri.replace("mongodb://", f"mongodb://{name}:{PASSWORD}@")
        client.admin.command("dropUser", name)


@pytest.fixture
def server(secret_uri: str, database: Database[Any], tmp_path: Path) -> Iterator[Running]:
    arguments = ("serve", "--database", database.name, "--port", "0", "--json")
    home = tmp_path / "home"
    Keyring.open(home).create("code")
    environment = {"SUPERDUPER_URI": secret_uri, "SUPERDUPER_HOME": str(home)}
    with running(tmp_path / "log", *arguments, **environment) as found:
        yield found


def private_keys(home: Path) -> list[str]:
    """The private halves, as their files hold them."""
    texts = [path.read_text() for path in (home / "keys").glob("*.key")]
    return [found for text in texts for found in re.findall(r'"private": "([^"]+)"', text)]


def command_lines(pid: int) -> list[str]:
    """How a process and all that it started were started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == os.getpgid(pid) or folder.name == str(pid):
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except (OSError, ProcessLookupError):
            continue
    return found


def ask_everything(server: Running, token: str) -> Iterator[str]:
    """Answers to every route, right and wrong, and what goes with them."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=server.ready["url"], timeout=30) as http:
        described = http.get("/openapi.json")
        yield described.text
        for path in described.json()["paths"]:
            if "events" in path:
                continue
            url = re.sub(r"\{\w+\}", "thing", path)
            for method in METHODS:
                for body in ({}, {"documents": [{"a": token}], "filter": {"$where": token}}):
                    sent = {"json": body} if method in ("POST", "PUT") else {}
                    answer = http.request(method, url, headers=headers, **sent)
                    yield f"{answer.headers} {answer.text}"
        yield http.get("/metrics", headers=headers).text
        yield http.get("/v1/status", headers={"Authorization": f"Bearer {token}x"}).text
        yield http.get(f"/v1/status?token={token}").text


def test_nothing_says_a_secret(server: Running, database: Database[Any], tmp_path: Path) -> None:
    token = Tokens(database).create("admin", author="test")["token"]
    keys = private_keys(tmp_path / "home")
    assert keys
    secrets = {PASSWORD, token, token[-43:], server.ready["token"], *keys}
    said = list(ask_everything(server, token))
    assert len(said) > 300
    said += command_lines(server.process.pid)
    said.append(server.log())
    said.append(run("doctor", SUPERDUPER_URI="mongodb://a:" + PASSWORD + "@127.0.0.1:1/").stdout)
    stored = [database[name].find() for name in database.list_collection_names() if "." in name]
    said += [str(document) for cursor in stored for document in cursor]
    for text in said:
        for secret in secrets:
            assert secret not in text, text[:500]


def test_a_database_that_goes_away_says_no_password(
    secret_uri: str, tmp_path: Path, database: Database[Any]
) -> None:
    wrong = secret_uri.replace(PASSWORD, f"{PASSWORD}-wrong")
    ended = run("serve", "--port", "0", SUPERDUPER_URI=wrong)
    assert ended.returncode == 1
    assert PASSWORD not in ended.stderr + ended.stdout
    assert "refused the user or password" in ended.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("connecting to mongodb://eve:geheim@host/x", "connecting to mongodb://eve:***@host/x"),
        ("Bearer sd_abcd1234_" + "a" * 43, "Bearer sd_abcd1234_***"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_logs_leave_secrets_out(text: str, told: str) -> None:
    record = logging.LogRecord("a", logging.INFO, "x", 1, "%s", (text,), None)
    assert Discreet("%(message)s").format(record) == told


def test_logs_leave_secrets_out_of_tracebacks_too() -> None:
    try:
        raise ValueError("mongodb://eve:geheim@host")
    except ValueError as error:
        problem = (type(error), error, error.__traceback__)
    record = logging.LogRecord("a", logging.ERROR, "x", 1, "failed", (), problem)
    written = Discreet().format(record)
    assert "ValueError" in written and "geheim" not in written
