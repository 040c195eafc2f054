"""Commands that stay: up, serve, work, store, demo."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

import click

from superduper import settings
from superduper.errors import InvalidInput, MissingExtra
from superduper.names import check_database
from superduper_server.cli_options import (
    DEFAULT_PATH,
    database_of,
    database_option,
    json_option,
    store_of,
    uri_option,
)

F = TypeVar("F", bound=Callable[..., Any])
MOST_WORKERS = 64


def listen_options(command: F) -> F:
    """Where and how a server listens."""
    existing = click.Path(exists=True, dir_okay=False)
    for option in (
        click.option(
            "--register-code/--no-register-code",
            default=None,
            help="Take code from trainers [default: SUPERDUPER_REGISTER_CODE, else on loopback].",
        ),
        click.option("--tls-key", type=existing, help="The certificate's private key (PEM)."),
        click.option("--tls-certificate", type=existing, help="Serve HTTPS with this (PEM)."),
        click.option(
            "--insecure-bind",
            is_flag=True,
            help="Listen beyond loopback although nothing encrypts what is sent.",
        ),
        click.option("--insecure", is_flag=True, help="Ask for no tokens; on loopback only."),
        click.option(
            "--workers",
            type=click.IntRange(1, MOST_WORKERS),
            default=lambda: int(settings.get_number("WORKERS")),
            show_default="SUPERDUPER_WORKERS, else 1",
            help="HTTP processes, which share the port and the models.",
        ),
        click.option(
            "--port",
            type=click.IntRange(0, 65535),
            default=lambda: int(settings.get_number("PORT")),
            show_default="SUPERDUPER_PORT, else 8000",
            help="The port; 0 lets the system choose.",
        ),
        click.option(
            "--host",
            default=lambda: settings.get("HOST"),
            show_default="SUPERDUPER_HOST, else 127.0.0.1",
            help="The address to listen on.",
        ),
    ):
        command = option(command)
    return command


def path_option(command: F) -> F:
    """`--path`: the folder of an embedded store."""
    return click.option(
        "--path", default=DEFAULT_PATH, show_default=True, help="The folder of the store."
    )(command)


@click.command()
@path_option
@database_option
@listen_options
@json_option
def up(path: str, database: str | None, as_json: bool, **listening: Any) -> None:
    """Store, worker and server in one, until stopped.

    Prints the URL and, the first time, an admin token: it is never shown again.

    \b
    superduper up --path ./superduper-data --database shop
    """
    from superduper.store.embedded import attach
    from superduper.store.logs import log_to_stderr

    log_to_stderr()

    attachment = attach(path, worker=True)
    try:
        told = {"address": attachment.address}
        name = database_of("", database)
        _serve(attachment.address, name, as_json=as_json, told=told, **listening)
    finally:
        attachment.close()


@click.command()
@uri_option
@database_option
@listen_options
@json_option
def serve(uri: str, database: str | None, as_json: bool, **listening: Any) -> None:
    """The REST API on one database, until stopped.

    Prints the URL and, if there is no administrator yet, an admin token: it is never shown again.

    \b
    superduper serve --uri mongodb://localhost:27017/?replicaSet=rs0 --database shop
    """
    from superduper.store.logs import log_to_stderr

    log_to_stderr()
    with store_of(uri) as address:
        name = database_of(uri, database)
        _serve(address, name, as_json=as_json, told={}, **listening)


def _serve(
    address: str,
    database: str,
    *,
    as_json: bool,
    told: dict[str, str],
    workers: int,
    **listening: Any,
) -> None:
    from superduper.jobs.kernel import conceal
    from superduper.store.mongo import connect_mongo, require_replica_set
    from superduper_server.hub import Hub, make_hub
    from superduper_server.serve import Server, make_server

    conceal()
    listening["tls"] = _tls_of(listening)
    with connect_mongo(address) as client:
        require_replica_set(client)
        server: Server | Hub
        if workers == 1:
            server = make_server(client[database], **listening)
        else:
            server = make_hub(client[database], address, workers, **listening)
        token = None if listening["insecure"] else _first_token(client[database])
        line = {"url": server.url, "token": token, **told}
        server.when_ready = lambda: _tell(line, as_json=as_json)
        server.run()


def _tls_of(listening: dict[str, Any]) -> tuple[str, str] | None:
    """The files of certificate and key, taken out of the options."""
    certificate, key = listening.pop("tls_certificate"), listening.pop("tls_key")
    if bool(certificate) != bool(key):
        raise InvalidInput("--tls-certificate and --tls-key belong together: pass both")
    return (certificate, key) if certificate else None


def _first_token(database: Any) -> str | None:
    """An admin token if there is none that works."""
    from superduper.store.mongo import database_errors
    from superduper_server.tokens import Tokens

    tokens = Tokens(database)
    with database_errors():
        if tokens.has_admin():
            return None
        made: str = tokens.create("admin", author="cli")["token"]
        return made


@click.command(short_help="An embedded store, until stopped.")
@path_option
@json_option
def store(path: str, as_json: bool) -> None:
    """An embedded store that any MongoDB client can use, until stopped.

    \b
    superduper store --path ./superduper-data
    """
    from superduper.store.logs import log_to_stderr

    log_to_stderr()
    with store_of(f"embedded:{path}") as address:
        ended = _when_told_to_stop()
        _tell({"address": address}, as_json=as_json)
        ended.wait()


@click.command(short_help="A worker, until stopped.")
@uri_option
@click.option("--database", "databases", multiple=True, help="Work for this database only.")
def work(uri: str, databases: tuple[str, ...]) -> None:
    """A worker: trains imputations and keeps fields filled, until stopped.

    Any number may run, on any machines. SIGTERM lets it finish what it is at; killing it at any
    moment loses nothing.

    \b
    superduper work --uri mongodb://localhost:27017/?replicaSet=rs0
    """
    from superduper.imputations import work as worker
    from superduper.store.logs import log_to_stderr

    log_to_stderr()

    with store_of(uri) as address:
        worker.work(address, [check_database(name) for name in databases])


@click.command(short_help="The main job, on real data.")
@click.option("--path", default="demo-data", show_default=True, help="The folder to use.")
@click.option("--keep", is_flag=True, help="Leave everything running at the end.")
def demo(path: str, keep: bool) -> None:
    """The main job on real data: handwritten digits whose missing labels fill themselves.

    \b
    superduper demo --keep
    """
    if find_spec("sklearn") is None:
        raise MissingExtra.of("demo", "superduper demo")
    # An ordinary script: its classes live in __main__, as in a script of your own.
    command = [sys.executable, "-m", "superduper_server.demo", "--path", path]
    os.execv(sys.executable, [*command, "--keep"] if keep else command)


def _tell(line: dict[str, Any], *, as_json: bool) -> None:
    """The ready line: for scripts as JSON, else for people."""
    if as_json:
        click.echo(json.dumps(line))
    else:
        for key, value in line.items():
            if value is not None:
                click.echo(f"{key:8} {value}")
        if line.get("token"):
            click.echo("The token is shown this once. Ctrl-C stops.")
    sys.stdout.flush()


def _when_told_to_stop() -> threading.Event:
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    return ended


COMMANDS = (up, serve, work, store, demo)
