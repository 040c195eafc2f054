"""What several commands share: options, where the data is, how answers are printed."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from superduper import settings
from superduper.errors import InvalidInput, NotFound, NotReady, error_of
from superduper.names import check_database

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_PATH = "./superduper-data"


def uri_option(command: F) -> F:
    """`--uri`: where the data is."""
    return click.option(
        "--uri",
        default=lambda: settings.get("URI"),
        show_default="SUPERDUPER_URI, else embedded:./superduper-data",
        help="embedded:PATH, mongodb://... or http://... (with SUPERDUPER_TOKEN).",
    )(command)


def database_option(command: F) -> F:
    """`--database`: which one."""
    return click.option(
        "--database",
        help="The database [default: SUPERDUPER_DATABASE, else the one in the URI, else main].",
    )(command)


def json_option(command: F) -> F:
    """`--json`: for scripts."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(command)


def database_of(uri: str, given: str | None) -> str:
    """The database that is meant: the option, the setting, the URI's, else `main`.

    Raises InvalidInput for what can be no database's name.
    """
    return check_database(given or _database_of(uri))


def _database_of(uri: str) -> str:
    if os.environ.get("SUPERDUPER_DATABASE"):
        return settings.get("DATABASE")
    parts = urlsplit(uri)
    in_uri = parts.path.strip("/") if parts.scheme.startswith("mongodb") else ""
    return in_uri or settings.get("DATABASE")


def is_server(uri: str) -> bool:
    """Whether a URI is that of a server rather than of a database."""
    return urlsplit(uri).scheme in ("http", "https")


@contextmanager
def connected(uri: str, database: str | None) -> Iterator[Any]:
    """A transport to whatever a URI names; nothing is started but an embedded store."""
    if is_server(uri):
        from superduper_client.http import HttpTransport

        with closing(HttpTransport(uri, settings.get("TOKEN") or None)) as transport:
            _check_served(transport, database)
            yield transport
    else:
        from superduper.connection import LocalTransport

        with mongo_of(uri, database) as found, closing(LocalTransport(found)) as local:
            yield local


def _check_served(transport: Any, database: str | None) -> None:
    from superduper.commands import ShowStatus

    if database and (served := ask(transport, ShowStatus)["database"]) != database:
        raise NotFound(f"the server serves the database {served!r}, not {database!r}")


@contextmanager
def store_of(uri: str) -> Iterator[str]:
    """The MongoDB address behind a URI; an embedded store is started if need be.

    Raises InvalidInput for a server's URL, and for what is no URI of ours.
    """
    if uri.startswith("embedded:"):
        from superduper.store.embedded import attach

        attachment = attach(uri.removeprefix("embedded:"))
        try:
            yield attachment.address
        finally:
            attachment.close()
    elif urlsplit(uri).scheme in ("mongodb", "mongodb+srv"):
        yield uri
    elif is_server(uri):
        raise InvalidInput("this needs the database itself: --uri embedded:PATH or mongodb://...")
    else:
        scheme = uri.partition(":")[0][:20]
        raise InvalidInput(f"a URI starts with embedded:, mongodb:// or http://, not {scheme!r}")


@contextmanager
def mongo_of(uri: str, database: str | None) -> Iterator[Any]:
    """The pymongo database behind a URI."""
    from superduper.store.mongo import connect_mongo, require_replica_set

    with store_of(uri) as address, connect_mongo(address) as client:
        require_replica_set(client)
        yield client[database_of(uri, database)]


def ask(transport: Any, command: Any, **fields: Any) -> Any:
    """The answer to a command."""
    from superduper.command import build

    return transport.send(build(command, **fields))


def ask_server(method: str, uri: str, path: str, body: Any = None) -> Any:
    """A server's answer to a request with our token; its errors are raised as ours."""
    import httpx2

    headers = {"Authorization": f"Bearer {settings.get('TOKEN')}"}
    try:
        answer = httpx2.request(
            method, f"{uri.rstrip('/')}{path}", json=body, headers=headers, timeout=30
        )
        found = answer.json()
    except (httpx2.HTTPError, ValueError) as error:
        raise NotReady(f"the server at {uri} does not answer: {type(error).__name__}") from error
    if answer.is_success:
        return found
    told = found.get("error", {})
    raise error_of(told.get("code", "internal"), told.get("message", f"{answer.status_code}"))


def print_json(value: Any) -> None:
    """A value as one line of JSON."""
    from superduper.fields.json import dumps

    click.echo(dumps(value).decode())


def print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Rows as JSON, or as aligned text."""
    if as_json:
        print_json(list(rows))
        return
    from superduper.display import Table

    click.echo(repr(Table([_readable(row) for row in rows], columns)))


def print_record(record: dict[str, Any], *, as_json: bool) -> None:
    """One record as JSON, or as lines of names and values."""
    if as_json:
        print_json(record)
        return
    width = max(map(len, record), default=0)
    for name, value in _readable(record).items():
        click.echo(f"{name.ljust(width)}  {'' if value is None else value}".rstrip())


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its times as people write them, and errors as their message."""
    shown = dict(row)
    for name, value in row.items():
        if isinstance(value, int) and (name == "at" or name.endswith(("_at", "last_used"))):
            shown[name] = datetime.fromtimestamp(value / 1000).isoformat(" ", "seconds")
        elif name == "error" and isinstance(value, dict):
            shown[name] = f"{value.get('type', 'error')}: {value.get('message', '')}"
    return shown
