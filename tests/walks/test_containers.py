"""Dockerfile and docker-compose.yml agree with the command line and the package."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from superduper_server.cli_root import superduper

ROOT = Path(__file__).parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def parse(arguments: list[str]) -> click.Context:
    """Parse a command line without running it; raises click's error if it is none."""
    root = click.Context(superduper)
    name, command, rest = superduper.resolve_command(root, list(arguments))
    assert command is not None
    return command.make_context(name, rest, parent=root)


def test_the_compose_file_is_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, str(ROOT / "docker-compose.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_every_service_is_looked_after() -> None:
    assert set(COMPOSE["services"]) == {"mongo", "server", "worker"}
    for name, service in COMPOSE["services"].items():
        assert service["healthcheck"]["test"], name
        assert service["restart"] == "unless-stopped", name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_file(), name


def test_everybody_has_a_password_and_no_other() -> None:
    assert all("file" in secret for secret in COMPOSE["secrets"].values())
    for name in ("server", "worker"):
        service = COMPOSE["services"][name]
        assert service["environment"] == {"MONGO_USER": name}
        assert service["secrets"] == [f"{name}_password"]
    assert set(COMPOSE["services"]["mongo"]["secrets"]) == set(COMPOSE["secrets"])
    assert "-p " not in str(COMPOSE["services"]["mongo"]["healthcheck"])


def test_the_worker_may_keep_account_in_all_our_collections() -> None:
    script = (ROOT / "scripts" / "mongo_users.js").read_text()
    named = re.findall(r'"([a-z.]+)"', script[script.index("ADDED = ") : script.index("ROLES")])
    written = set()
    for path in (ROOT / "superduper").rglob("*.py"):
        written |= set(
            re.findall(r'(?:NAME|MARK)(?:: \w+)? = "superduper\.([a-z]+)"', path.read_text())
        )
        written |= set(re.findall(r'database\["superduper\.([a-z]+)"\]', path.read_text()))
    assert len(written) > 8
    # The last is a mark inside sealed objects, not a collection.
    assert written - set(named) <= {"audit", "tokens", "storage"}


ROLES_OF_SCRIPT = """
const [script] = process.argv.slice(1), made = {};
const db = { getSiblingDB: () => ({
  createRole: ({ role, privileges }) => { made[role] = privileges; }, createUser: () => {} }) };
const modules = { fs: { readFileSync: () => "password" } };
const text = require("fs").readFileSync(script, "utf8");
new Function("require", "db", "process", text)((name) => modules[name], db, process);
console.log(JSON.stringify(made));
"""


def rights(role: str, **environment: str) -> dict[str, set[str]]:
    """What the script lets a user do, by collection; in those of `""`, in all."""
    script = str(ROOT / "scripts" / "mongo_users.js")
    done = subprocess.run(
        ["node", "-e", ROLES_OF_SCRIPT, script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    found: dict[str, set[str]] = {}
    for each in json.loads(done.stdout)[role]:
        found.setdefault(each["resource"]["collection"], set()).update(each["actions"])
    return found


@pytest.mark.skipif(shutil.which("node") is None, reason="needs a JavaScript interpreter")
def test_with_named_collections_every_right_is_for_one_of_them() -> None:
    for role in ("superduperServer", "superduperWorker"):
        may = rights(role, SUPERDUPER_COLLECTIONS="docs,more")
        assert may[""] == {"listCollections"}
        assert may["docs"] == may["more"]
        assert "insert" in may["superduper.audit"]
        assert not {"update", "remove"} & may["superduper.audit"]
        everything = set().union(*may.values())
        assert not {"dropCollection", "dropIndex", "dropDatabase", "bypassDocumentValidation"} & (
            everything
        )
    assert (
        "remove"
        not in rights("superduperServer", SUPERDUPER_COLLECTIONS="docs")["superduper.tokens"]
    )
    worker = rights("superduperWorker", SUPERDUPER_COLLECTIONS="docs")
    assert not {"superduper.tokens", "superduper.traffic"} & set(worker)
    assert not {"insert", "remove"} & (worker["docs"] | worker["superduper.imputations"])
    assert not {"insert", "remove"} & rights("superduperWorker", SUPERDUPER_COLLECTIONS="")[""]


def test_compose_tells_the_script_which_collections_and_which_database() -> None:
    mongo, script = COMPOSE["services"]["mongo"], ROOT / "scripts" / "mongo_users.js"
    environment = mongo["environment"]
    assert environment["SUPERDUPER_COLLECTIONS"] == "${SUPERDUPER_COLLECTIONS:-}"
    assert (
        f"./scripts/{script.name}:/docker-entrypoint-initdb.d/{script.name}:ro" in mongo["volumes"]
    )
    # What the script is not told is what the other services use.
    read = set(re.findall(r"process\.env\.(\w+)", script.read_text()))
    assert read - set(environment) == {"SUPERDUPER_SECRETS", "SUPERDUPER_DATABASE"}
    assert parse(COMPOSE["services"]["worker"]["command"]).params["databases"] == ("main",)
    assert "@mongo:27017/main?" in COMPOSE["services"]["server"]["entrypoint"][2]


@pytest.mark.parametrize("name", ["server", "worker"])
def test_the_commands_are_ours(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["build"] == "."
    parse(service["command"])
    *_, start, zeroth = service["entrypoint"]
    assert zeroth == "superduper" and 'exec superduper "$$@"' in start
    check = service["healthcheck"]["test"]
    if check[:2] == ["CMD", "superduper"]:
        parse(check[2:])


def test_the_server_listens_where_it_is_asked_and_says_so() -> None:
    service = COMPOSE["services"]["server"]
    options = parse(service["command"]).params
    assert (options["host"], options["insecure_bind"]) == ("0.0.0.0", True)
    assert not options["insecure"]
    (published,) = service["ports"]
    assert published == f"127.0.0.1:{options['port']}:{options['port']}"
    assert re.search(r"^EXPOSE 8000$", DOCKERFILE, re.M)
    assert f"127.0.0.1:{options['port']}/readyz" in service["healthcheck"]["test"][-1]


def test_the_image_holds_the_three_packages() -> None:
    for copied in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M):
        for source in copied.split():
            assert (ROOT / source).exists(), source
    packages = ["superduper", "client", "server"]
    assert all(f"COPY {name} {name}" in DOCKERFILE for name in packages)


def test_the_image_runs_as_nobody_special() -> None:
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.M)
    assert users == ["10001"] and "--uid 10001" in DOCKERFILE
    home = COMPOSE["services"]["server"]["volumes"][0].split(":")[1]
    assert f"mkdir -p {home} " in DOCKERFILE
    (entrypoint,) = re.findall(r'^ENTRYPOINT \["(.*)"\]$', DOCKERFILE, re.M)
    assert entrypoint in PROJECT["scripts"]
