"""Commands that look: status, imputations, failures, jobs, highscores, predict."""

import socket
import sys
from typing import Any

import click

from superduper.errors import InvalidInput, NotReady
from superduper_server.cli_options import (
    ask,
    connected,
    database_option,
    json_option,
    print_json,
    print_record,
    print_rows,
    uri_option,
)

WORKER_COLUMNS = ("host", "pid", "state", "started_at", "seen_at")
STATUS_COLUMNS = ("collection", "name", "status", "active", "left", "eta_seconds", "trouble")
IMPUTATION_COLUMNS = ("name", "status", "model_key", "target_key", "model", "active")
FAILURE_COLUMNS = ("document", "state", "attempts", "error")
CORRECTION_COLUMNS = ("document", "field", "how", "version", "at")
JOB_COLUMNS = ("id", "kind", "state", "attempts", "created_at", "error")
NO_WORKER = """
No worker is alive that works for this database. One for all databases, as `up` and `connect()`
start it, begins here with the first component, imputation, job or token."""

limit_option = click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many."
)


@click.command()
@uri_option
@database_option
@click.option("--alive", is_flag=True, help="Exit with 1 unless a worker of this host is alive.")
@json_option
def status(uri: str, database: str | None, alive: bool, as_json: bool) -> None:
    """Workers, imputations and jobs at a glance.

    \b
    superduper status --uri embedded:./superduper-data
    """
    from superduper import commands

    with connected(uri, database) as there:
        found = ask(there, commands.ShowStatus)
    if as_json:
        print_json(found)
    else:
        click.echo(f"database {found['database']}, version {found['version']}")
        for title, columns in (("workers", WORKER_COLUMNS), ("imputations", STATUS_COLUMNS)):
            click.echo(f"\n{title}")
            print_rows(found[title], columns, as_json=False)
        if not found["workers"] and not found["imputations"]:
            click.echo(NO_WORKER)
        jobs = ", ".join(f"{count} {state}" for state, count in found["jobs"].items())
        click.echo(f"\njobs: {jobs}")
        for trouble in found["troubles"]:
            click.echo(f"trouble: {trouble}")
    if alive and not any(row.get("host") == socket.gethostname() for row in found["workers"]):
        raise NotReady("no worker of this host is alive: start one with `superduper work`")


@click.command(short_help="Imputations, or one of them.")
@click.argument("collection", required=False)
@click.argument("name", required=False)
@uri_option
@database_option
@json_option
def imputations(
    collection: str | None, name: str | None, uri: str, database: str | None, as_json: bool
) -> None:
    """All imputations, those of a COLLECTION, or everything about the one called NAME.

    \b
    superduper imputations documents
    """
    from superduper import commands

    with connected(uri, database) as there:
        if collection is None:
            rows = ask(there, commands.ShowStatus)["imputations"]
            print_rows(rows, STATUS_COLUMNS, as_json=as_json)
        elif name is None:
            rows = ask(there, commands.ListImputations, collection=collection)
            print_rows(rows, IMPUTATION_COLUMNS, as_json=as_json)
        else:
            found = ask(there, commands.ShowImputation, collection=collection, name=name)
            print_record(found, as_json=as_json)


@click.command(short_help="Documents that could not be filled.")
@click.argument("collection")
@click.argument("imputation")
@click.option("--retry", is_flag=True, help="Try them once more.")
@limit_option
@uri_option
@database_option
@json_option
def failures(
    collection: str,
    imputation: str,
    retry: bool,
    limit: int,
    uri: str,
    database: str | None,
    as_json: bool,
) -> None:
    """Documents of a COLLECTION that an IMPUTATION could not fill, with the reason.

    \b
    superduper failures documents y_from_x
    """
    from superduper import commands

    place = {"collection": collection, "name": imputation}
    with connected(uri, database) as there:
        if retry:
            print_record(ask(there, commands.RetryFailures, **place), as_json=as_json)
        else:
            rows = ask(there, commands.ListFailures, limit=limit, **place)
            print_rows(rows, FAILURE_COLUMNS, as_json=as_json)


@click.command(short_help="Filled values that people changed.")
@click.argument("collection")
@click.argument("imputation")
@limit_option
@uri_option
@database_option
@json_option
def corrections(
    collection: str, imputation: str, limit: int, uri: str, database: str | None, as_json: bool
) -> None:
    """Values that an IMPUTATION of a COLLECTION filled and people changed or confirmed.

    \b
    superduper corrections documents y_from_x
    """
    from superduper import commands

    with connected(uri, database) as there:
        place = {"collection": collection, "name": imputation}
        rows = ask(there, commands.ListCorrections, limit=limit, **place)
        print_rows(rows, CORRECTION_COLUMNS, as_json=as_json)


@click.command(short_help="Jobs, or one of them.")
@click.argument("id", required=False)
@click.option("--state", help="Only those queued, running, succeeded, failed or cancelled.")
@click.option("--cancel", is_flag=True, help="Ask the job called ID to stop.")
@limit_option
@uri_option
@database_option
@json_option
def jobs(
    id: str | None,
    state: str | None,
    cancel: bool,
    limit: int,
    uri: str,
    database: str | None,
    as_json: bool,
) -> None:
    """Jobs, newest first, or everything about the one called ID.

    \b
    superduper jobs --state running
    """
    from superduper import commands

    if cancel and id is None:
        raise click.UsageError("--cancel needs the job's ID")
    with connected(uri, database) as there:
        if id is None:
            rows = ask(there, commands.ListJobs, state=state, limit=limit)
            print_rows(rows, JOB_COLUMNS, as_json=as_json)
        else:
            command = commands.CancelJob if cancel else commands.ShowJob
            print_record(ask(there, command, id=id), as_json=as_json)


@click.command(short_help="Finished trainings, ranked by a metric.")
@click.option("--collection", help="Only runs on this collection.")
@click.option("--metric", help="Rank by this metric.")
@limit_option
@uri_option
@database_option
@json_option
def highscores(
    collection: str | None,
    metric: str | None,
    limit: int,
    uri: str,
    database: str | None,
    as_json: bool,
) -> None:
    """Finished trainings ranked by a metric; comparable where test_hash is the same.

    \b
    superduper highscores --collection documents --metric accuracy
    """
    from superduper import commands
    from superduper.collection import SCORE_COLUMNS

    with connected(uri, database) as there:
        rows = ask(there, commands.Highscores, collection=collection, metric=metric, limit=limit)
    print_rows(rows, SCORE_COLUMNS, as_json=as_json)


@click.command(short_help="Outputs of a model.")
@click.argument("collection")
@click.argument("model")
@click.argument("values", nargs=-1)
@click.option("--version", type=click.IntRange(1), help="This version instead of the live one.")
@uri_option
@database_option
@json_option
def predict(
    collection: str,
    model: str,
    values: tuple[str, ...],
    version: int | None,
    uri: str,
    database: str | None,
    as_json: bool,
) -> None:
    """Outputs of a MODEL for VALUES: each is JSON; without any they are read from stdin, by line.

    \b
    superduper predict documents my_model '[0.1, 0.2]' '[0.3, 0.4]'
    """
    from superduper import commands

    inputs = [_value(text) for text in values or (line for line in sys.stdin if line.strip())]
    with connected(uri, database) as there:
        answer = ask(
            there,
            commands.Predict,
            collection=collection,
            name=model,
            inputs=inputs,
            version=version,
        )
    if as_json:
        print_json(answer)
    else:
        for output in answer["outputs"]:
            print_json(output)
    for index, message in (answer.get("errors") or {}).items():
        click.echo(f"superduper: input {index}: {message}", err=True)
    if answer.get("errors"):
        sys.exit(1)


def _value(text: str) -> Any:
    from superduper.fields.json import loads

    try:
        return loads(text.encode())
    except InvalidInput as error:
        raise InvalidInput(
            f"{text[:40]!r}: {error.message}; a value is JSON, so text goes in double quotes"
        ) from error


COMMANDS: tuple[click.Command, ...] = (
    *(status, imputations, failures, corrections, jobs, highscores, predict),
)
