"""The command line: help, tables, errors, exit codes."""

import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from pymongo.database import Database

from superduper import settings
from superduper.collection import Collection
from superduper.connection import LocalTransport
from superduper.jobs.queue import Queue
from superduper.store.audit import Audit
from superduper_server.cli_root import superduper
from superduper_server.tokens import Tokens
from tests.server.running import CLI, Running, run, running

Invoke = Callable[..., Result]


def commands_of(group: click.Group, prefix: str = "superduper") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


COMMANDS = dict(commands_of(superduper))


def double(value: Any) -> list[float]:
    """A model that is a plain callable."""
    return [2 * float(number) for number in value]


@pytest.fixture
def invoke(store_uri: str, database: Database[Any], monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs a command in this process on a fresh database."""
    monkeypatch.setenv("SUPERDUPER_URI", store_uri)
    monkeypatch.setenv("SUPERDUPER_DATABASE", database.name)
    runner = CliRunner()
    return lambda *arguments, **more: runner.invoke(superduper, list(arguments), **more)


@pytest.fixture
def docs(database: Database[Any]) -> Iterator[Collection]:
    """The collection `docs` of the database."""
    transport = LocalTransport(database)
    yield Collection(transport, "docs", database["docs"])
    transport.close()


def test_the_commands_there_are() -> None:
    assert {name.removeprefix("superduper ") for name in COMMANDS} == {
        *(
            "up",
            "serve",
            "work",
            "store",
            "demo",
            "status",
            "imputations",
            "failures",
            "form",
            "corrections",
        ),
        *("highscores", "jobs", "predict", "traffic", "doctor"),
        *("key create", "key rotate", "key revoke"),
        *("token create", "token list", "token revoke"),
        *("audit list", "audit verify"),
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(superduper, [*name.split()[1:], "--help"])
    assert result.exit_code == 0
    examples = [line for line in result.output.splitlines() if line.strip().startswith(name)]
    assert examples, result.output
    for option in COMMANDS[name].params:
        assert isinstance(option, click.Argument) or option.help, (name, option.name)


def test_whatever_prints_a_table_has_json() -> None:
    for name, command in COMMANDS.items():
        if name.split()[1] in ("demo", "work"):
            continue
        assert any("--json" in option.opts for option in command.params), name


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*CLI, "--help"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    code = (
        "import sys; from superduper_server import cli_root;"
        "print({'torch', 'numpy', 'fastapi', 'uvicorn', 'pymongo', 'pydantic', 'httpx2'}"
        " & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "set()", found.stderr


def test_version() -> None:
    from superduper import __version__

    assert run("--version").stdout == f"superduper, version {__version__}\n"


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("click", ["--help"], "server"),
        ("fastapi", ["serve", "--port", "0"], "server"),
        ("orjson", ["serve", "--port", "0"], "server"),
        ("sklearn", ["demo"], "demo"),
    ],
)
def test_a_missing_extra_is_named(
    store_uri: str, missing: str, arguments: list[str], extra: str
) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = {arguments!r}\n"
        "from superduper_server.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "SUPERDUPER_URI": store_uri},
    )
    assert ended.returncode == 2, ended.stderr
    assert f"pip install 'superduper-imputations[{extra}]'" in ended.stderr
    assert "Traceback" not in ended.stderr


class TestErrors:
    """One line on stderr, exit code 1."""

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            (["failures", "docs", "nothing"], "no imputation 'nothing'"),
            (["failures", "docs", "1x"], "not a valid name"),
            (["status", "--database", "a/b"], "'a/b' is not a valid name for a database"),
            (["predict", "docs", "nothing", "1"], "nothing"),
            (["predict", "docs", "nothing", "cat"], "double quotes"),
            (["jobs", "nothing"], "nothing"),
            (["status", "--uri", "redis://x"], "redis"),
            (["token", "create", "--role", "reader", "--expires", "soon"], "30d"),
            (["token", "revoke", "nobody"], "no token 'nobody'"),
            (["work", "--uri", "http://127.0.0.1:1"], "needs the database itself"),
            (["serve", "--host", "0.0.0.0"], "--insecure-bind"),
            (["status", "--uri", "http://127.0.0.1:9"], "nothing answers"),
            (["token", "list", "--uri", "http://127.0.0.1:9"], "does not answer"),
        ],
    )
    def test_ours(self, invoke: Invoke, arguments: list[str], why: str) -> None:
        result = invoke(*arguments)
        assert result.exit_code == 1, result.output
        assert why in result.stderr
        assert result.stderr.startswith("superduper: ")
        assert len(result.stderr.strip().splitlines()) == 1
        assert result.stdout == ""

    def test_of_usage(self, invoke: Invoke) -> None:
        assert invoke("jobs", "--cancel").exit_code == 2
        assert invoke("token", "create").exit_code == 2
        assert invoke("serve", "--port", "70000").exit_code == 2
        assert invoke("nothing").exit_code == 2

    def test_of_settings(self, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SUPERDUPER_PORT", "eighty")
        result = invoke("serve")
        assert result.exit_code == 1
        assert "SUPERDUPER_PORT" in result.stderr


def test_tokens_come_and_go(invoke: Invoke, database: Database[Any]) -> None:
    made = json.loads(
        invoke("token", "create", "--role", "writer", "--expires", "2h", "--json").stdout
    )
    assert made["expires_at"] - made["created_at"] == 7_200_000
    assert "once" in invoke("token", "create", "--role", "admin").stdout
    listed = invoke("token", "list")
    assert made["id"] in listed.stdout
    assert made["token"] not in listed.stdout
    assert json.loads(invoke("token", "revoke", made["id"], "--json").stdout)["revoked"] is True
    rows = json.loads(invoke("token", "list", "--json").stdout)
    assert [row["revoked"] for row in rows] == [True, False]
    assert len(Tokens(database).list()) == 2


def test_status_and_jobs(invoke: Invoke, database: Database[Any]) -> None:
    id = Queue(database).put("fit", {"collection": "docs", "imputation": "y_from_x"})
    found = json.loads(invoke("status", "--json").stdout)
    assert found["database"] == database.name
    assert found["jobs"]["queued"] == 1
    shown = invoke("status")
    assert "1 queued" in shown.stdout
    assert database.name in shown.stdout
    assert id in invoke("jobs").stdout
    assert [row["id"] for row in json.loads(invoke("jobs", "--json").stdout)] == [id]
    assert json.loads(invoke("jobs", id, "--json").stdout)["state"] == "queued"
    assert json.loads(invoke("jobs", id, "--cancel", "--json").stdout)["state"] != "queued"
    assert "(nothing)" in invoke("imputations").stdout
    assert "(nothing)" in invoke("imputations", "docs").stdout
    assert json.loads(invoke("highscores", "--json").stdout) == []


def test_versions_on_trial(invoke: Invoke, docs: Collection) -> None:
    docs.create_model("double", double)
    docs.create_model("double", len)
    result = invoke("traffic", "docs", "double", "--canary", "1:0.25", "--json")
    assert json.loads(result.stdout)["canary"] == {"version": 1, "share": 0.25}, result.stderr
    result = invoke("traffic", "docs", "double", "--shadow", "1", "--json")
    told = json.loads(result.stdout)
    assert (told["canary"], told["shadow"]["share"], told["live"]) == (None, 1.0, 2)
    assert "shadow_different" in invoke("traffic", "docs", "double").stdout
    assert invoke("traffic", "docs", "double", "--canary", "x").exit_code == 1
    assert invoke("traffic", "docs", "double", "--canary", "1:0.5", "--none").exit_code == 1
    told = json.loads(invoke("traffic", "docs", "double", "--none", "--json").stdout)
    assert told["shadow"] is None
    assert "no imputation" in invoke("traffic", "docs", "double", "--imputation").stderr


def test_alive_means_a_worker_of_this_host(invoke: Invoke) -> None:
    result = invoke("status", "--alive")
    assert result.exit_code == 1
    assert "superduper work" in result.stderr


def test_predictions(invoke: Invoke, docs: Collection) -> None:
    docs.create_model("double", double)
    result = invoke("predict", "docs", "double", "[1, 2.5]", "[3]")
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line) for line in result.stdout.splitlines()] == [[2.0, 5.0], [6.0]]
    result = invoke("predict", "docs", "double", "--json", input="[1]\n\n[2]\n")
    assert json.loads(result.stdout)["outputs"] == [[2.0], [4.0]]
    result = invoke("predict", "docs", "double", "--version", "9", "[1]")
    assert result.exit_code == 1


def test_the_doctor(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("SUPERDUPER_TOKEN", "sd_secret00_" + "s" * 43)
    nowhere = "mongodb://me:geheim@127.0.0.1:9/?serverSelectionTimeoutMS=200"
    monkeypatch.setenv("SUPERDUPER_URI", nowhere)
    result = invoke("doctor", "--json")
    assert result.exit_code == 0, result.stderr
    assert "geheim" not in result.output
    assert "sd_secret00" not in result.output
    report = json.loads(result.stdout)
    rows = {row["setting"]: row for row in report["settings"]}
    assert rows["SUPERDUPER_URI"]["source"] == "environment"
    assert rows["SUPERDUPER_PORT"] == {
        "setting": "SUPERDUPER_PORT",
        "value": "8000",
        "source": "default",
    }
    assert len(rows) == len(settings.SETTINGS)
    assert sum(row["used"] for row in report["servers"]) <= 1
    assert {"package": "torch", "version": report["torch"]} in report["packages"]
    assert "127.0.0.1" in report["database"]
    assert home in report["home"]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    assert report["models compute on"] == (gpu or "cpu")
    shown = invoke("doctor").stdout
    assert "geheim" not in shown
    assert "servers" in shown


def test_the_doctor_makes_nothing(tmp_path: Path, invoke: Invoke) -> None:
    home = tmp_path / "nowhere"
    result = invoke("doctor", env={"SUPERDUPER_HOME": str(home), "SUPERDUPER_URI": ""})
    assert "not there yet" in result.stdout
    assert not home.exists()


def test_keys(tmp_path: Path, invoke: Invoke) -> None:
    home = tmp_path / "home"
    result = invoke("key", "create", "--json", env={"SUPERDUPER_HOME": str(home)})
    made = json.loads(result.stdout)
    assert Path(made["public"]).is_file()
    private = Path(made["public"]).with_suffix(".key")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_a_key_is_rotated_and_revoked(tmp_path: Path, invoke: Invoke) -> None:
    env = {"SUPERDUPER_HOME": str(tmp_path)}
    first = json.loads(invoke("key", "create", "--json", env=env).stdout)["key"]
    second = json.loads(invoke("key", "rotate", "--json", env=env).stdout)["key"]
    assert f"keys: 2 trusted, signing with {second} (code)" in invoke("doctor", env=env).stdout
    moved = json.loads(invoke("key", "revoke", first, "--json", env=env).stdout)["moved_to"]
    assert Path(moved, f"{first}.pub").is_file()
    assert f"keys: 1 trusted, signing with {second}" in invoke("doctor", env=env).stdout
    again = invoke("key", "revoke", first, env=env)
    assert again.exit_code == 1
    assert second in again.stderr
    (tmp_path / "keys").chmod(0o777)
    assert "chmod 700" in invoke("doctor", env=env).stdout


def test_what_is_done_to_keys_is_in_the_audit_log(
    tmp_path: Path, invoke: Invoke, database: Database[Any], store_uri: str
) -> None:
    env = {"SUPERDUPER_HOME": str(tmp_path), "SUPERDUPER_URI": store_uri}
    first = json.loads(invoke("key", "create", "--json", env=env).stdout)["key"]
    second = json.loads(invoke("key", "rotate", "--json", env=env).stdout)["key"]
    assert invoke("key", "revoke", first, env=env).exit_code == 0
    assert invoke("key", "revoke", "0" * 16, env=env).exit_code == 1
    told = [
        (entry["action"], entry["outcome"], entry["content"])
        for entry in Audit(database).entries()
        if entry["outcome"] != "asked"
    ]
    assert told == [
        ("CreateKey", "done", first),
        ("RotateKey", "done", second),
        ("RevokeKey", "done", first),
        ("RevokeKey", "failed: not_found", None),
    ]
    unnoted = invoke("key", "rotate", env={**env, "SUPERDUPER_URI": ""})
    assert "in no audit log: pass --uri" in unnoted.stderr


class TestOverHttp:
    """The same commands against a server."""

    @pytest.fixture
    def server(self, store_uri: str, database: Database[Any], tmp_path: Path) -> Iterator[Running]:
        arguments = ("serve", "--uri", store_uri, "--database", database.name, "--port", "0")
        with running(tmp_path / "log", *arguments, "--json") as found:
            yield found

    def test_looking_and_predicting(
        self, server: Running, docs: Collection, database: Database[Any], invoke: Invoke
    ) -> None:
        docs.create_model("double", double)
        env = {"SUPERDUPER_URI": server.ready["url"], "SUPERDUPER_TOKEN": server.ready["token"]}
        found = json.loads(invoke("status", "--json", env=env).stdout)
        assert found["database"] == database.name
        result = invoke("predict", "docs", "double", "[4]", env=env)
        assert json.loads(result.stdout) == [8.0], result.stderr
        assert invoke("jobs", env=env).exit_code == 0
        other = invoke("status", "--database", "other", env=env)
        assert other.exit_code == 1
        assert f"serves the database {database.name!r}" in other.stderr
        stranger = invoke("status", env={**env, "SUPERDUPER_TOKEN": ""})
        assert stranger.exit_code == 1
        assert "token" in stranger.stderr

    def test_tokens(self, server: Running, invoke: Invoke) -> None:
        env = {"SUPERDUPER_URI": server.ready["url"], "SUPERDUPER_TOKEN": server.ready["token"]}
        made = json.loads(invoke("token", "create", "--role", "reader", "--json", env=env).stdout)
        assert made["id"] in invoke("token", "list", env=env).stdout
        refused = invoke("token", "list", env={**env, "SUPERDUPER_TOKEN": made["token"]})
        assert refused.exit_code == 1
        assert "role admin" in refused.stderr
        assert invoke("token", "revoke", made["id"], env=env).exit_code == 0
        assert invoke("token", "revoke", "no/body", env=env).exit_code == 1
        report = json.loads(invoke("doctor", "--json", env=env).stdout)
        assert report["database"].endswith("answers")
