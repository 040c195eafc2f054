"""Commands that keep order: token, doctor."""

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from superduper import settings
from superduper.errors import InvalidInput, MissingExtra, SuperduperError
from superduper_server.cli_options import (
    ask_server,
    database_option,
    is_server,
    json_option,
    mongo_of,
    print_json,
    print_record,
    print_rows,
    uri_option,
)

TOKEN_COLUMNS = (
    *("id", "role", "rate", "at_once", "created_at", "created_by"),
    *("expires_at", "last_used", "revoked"),
)
SETTING_COLUMNS = ("setting", "value", "source")
VERSION_COLUMNS = ("package", "version")
SERVER_COLUMNS = ("server", "program", "used")
# What a version is shown of; import names can differ, so it is the distributions' names.
PACKAGES = (
    *("pymongo", "pydantic", "httpx2", "dill", "cloudpickle", "tqdm"),
    *("torch", "numpy", "safetensors", "cryptography", "psutil"),
    *("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "orjson", "prometheus-client"),
    *("click", "pillow", "secantusdb"),
)
DURATION = re.compile(r"(\d{1,6})([smhdw])")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@click.group()
def token() -> None:
    """Who may use a server, and as what."""


@token.command("create")
@click.option(
    "--role",
    type=click.Choice(["reader", "writer", "trainer", "admin"]),
    required=True,
    help="What it may do: each role includes those before it; a trainer may run code.",
)
@click.option("--expires", help="How long it is good for, as 12h, 30d or 4w [default: for ever].")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests a second.")
@click.option("--at-once", type=click.IntRange(min=1), help="Requests at once.")
@uri_option
@database_option
@json_option
def token_create(
    role: str, expires: str | None, uri: str, database: str | None, as_json: bool, **limits: Any
) -> None:
    """Make a token; its text is shown this once.

    \b
    superduper token create --role writer --expires 30d --rate 50
    """
    asked = {"role": role, "seconds": _seconds_of(expires), **limits}
    if is_server(uri):
        made = ask_server("POST", uri, "/v1/tokens", asked)
    else:
        made = _in_database(uri, database, lambda tokens: tokens.create(**asked, author="cli"))
    if as_json:
        print_json(made)
    else:
        print_record(made, as_json=False)
        click.echo("The token is shown this once.")


@token.command("list")
@uri_option
@database_option
@json_option
def token_list(uri: str, database: str | None, as_json: bool) -> None:
    """The tokens there are, without their secrets.

    \b
    superduper token list
    """
    if is_server(uri):
        rows = ask_server("GET", uri, "/v1/tokens")
    else:
        rows = _in_database(uri, database, lambda tokens: tokens.list())
    print_rows(rows, TOKEN_COLUMNS, as_json=as_json)


@token.command("revoke")
@click.argument("id")
@uri_option
@database_option
@json_option
def token_revoke(id: str, uri: str, database: str | None, as_json: bool) -> None:
    """Make the token with this ID (the part after sd_) worthless, within two seconds.

    \b
    superduper token revoke k3x90a1b
    """
    if is_server(uri):
        from urllib.parse import quote

        found = ask_server("DELETE", uri, f"/v1/tokens/{quote(id, safe='')}")
    else:
        found = _in_database(uri, database, lambda tokens: tokens.revoke(id, author="cli"))
    print_record(found, as_json=as_json)


def _seconds_of(expires: str | None) -> float | None:
    if expires is None:
        return None
    found = DURATION.fullmatch(expires)
    if found is None:
        raise InvalidInput(f"--expires {expires[:20]!r}: write a number and s, m, h, d or w: 30d")
    return int(found[1]) * UNITS[found[2]]


def _in_database(uri: str, database: str | None, act: Any) -> Any:
    from superduper.store.mongo import database_errors
    from superduper_server.tokens import Tokens

    with mongo_of(uri, database) as found, database_errors():
        return act(Tokens(found))


@click.command(short_help="What is installed, found and set.")
@json_option
def doctor(as_json: bool) -> None:
    """What is installed, found and set, and where each setting comes from.

    \b
    superduper doctor
    """
    report = {
        "python": f"{platform.python_version()} at {sys.executable}",
        "platform": platform.platform(),
        "torch": _torch(),
        "packages": [{"package": name, "version": _version(name)} for name in PACKAGES],
        "servers": _servers(),
        "home": _home(),
        "models compute on": _device(),
        "user code": _boundaries(),
        "settings": _settings(),
        "database": _database(),
    }
    if as_json:
        print_json(report)
        return
    print_record({k: v for k, v in report.items() if not isinstance(v, list)}, as_json=False)
    for title, columns in (
        ("servers", SERVER_COLUMNS),
        ("settings", SETTING_COLUMNS),
        ("packages", VERSION_COLUMNS),
    ):
        click.echo(f"\n{title}")
        print_rows(report[title], columns, as_json=False)  # type: ignore[arg-type]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _torch() -> str:
    version = _version("torch")
    if version != "not installed":
        return version
    return MissingExtra.of("torch", "training and predicting here").message


def _servers() -> list[dict[str, Any]]:
    from superduper.store.servers import describe_servers

    return describe_servers()


def _home() -> str:
    """The folder of the keys and what they may do; nothing is made by looking."""
    folder = Path(settings.get("HOME")).expanduser()
    if not folder.is_dir():
        return f"{folder} (not there yet)"
    mode = folder.stat().st_mode & 0o777
    warning = "" if mode & 0o077 == 0 else ": others can read it, run chmod 0700 on it"
    return f"{folder} (mode {mode:04o}{warning}), {_keys(folder / 'keys')}"


def _keys(folder: Path) -> str:
    from superduper.store.signing import Keyring

    if not folder.is_dir():
        return "no keys yet"
    try:
        trusted = Keyring(folder).public_keys()
    except SuperduperError as error:
        return error.message
    signing = [
        f"{id} ({key['purpose']})" for id, key in trusted.items() if (folder / f"{id}.key").exists()
    ]
    return f"keys: {len(trusted)} trusted, signing with {', '.join(signing) or 'none'}"


def _boundaries() -> str:
    """What the system keeps user code from, and what it does not."""
    try:
        from superduper.jobs.boundaries import boundaries

        found = boundaries()
    except (SuperduperError, ImportError) as error:
        return f"cannot be tried out: {error}"
    held = [text for text, holds in found.items() if holds]
    missing = [text for text, holds in found.items() if not holds]
    return (
        f"held to: {', '.join(held) or 'nothing'}; not held to: {', '.join(missing) or 'nothing'}"
    )


def _device() -> str:
    """What models compute on, as their processes see it."""
    try:
        from superduper.jobs.boundaries import device

        return device()
    except (SuperduperError, ImportError) as error:
        return f"cannot be tried out: {error}"


def _settings() -> list[dict[str, Any]]:
    from superduper.store.logs import redact

    rows = []
    for row in settings.SETTINGS:
        value = settings.get(row.name)
        if row.name == "TOKEN" and value:
            value = "(set)"
        source = "environment" if os.environ.get(row.variable) else "default"
        rows.append({"setting": row.variable, "value": redact(value), "source": source})
    return rows


def _database() -> str:
    """Whether what SUPERDUPER_URI names answers; an embedded store is not started for that."""
    from superduper.store.logs import redact
    from superduper.store.mongo import connect_mongo, require_replica_set

    uri = settings.get("URI")
    if uri.startswith("embedded:"):
        return f"{uri}: started when it is needed"
    try:
        if is_server(uri):
            ask_server("GET", uri, "/v1/status")
        else:
            with connect_mongo(uri) as client:
                require_replica_set(client)
    except SuperduperError as error:
        return f"{redact(uri)}: {error.message}"
    return f"{redact(uri)}: answers"


COMMANDS: tuple[click.Command, ...] = (token, doctor)
