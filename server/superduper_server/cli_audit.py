"""Commands about the audit log: list, verify."""

import re
from collections.abc import Iterator
from typing import Any

import click

from superduper.errors import InvalidInput, SuperduperError
from superduper_server.cli_options import (
    ask_server,
    database_option,
    is_server,
    json_option,
    mongo_of,
    print_record,
    print_rows,
    uri_option,
)

COLUMNS = ("number", "at", "who", "action", "subject", "outcome", "content")
NOTED = re.compile(r"(\d{1,18}):([0-9a-f]{64})")
PAGE = 1000


class BrokenChain(SuperduperError):
    """The audit log is not what was written."""


@click.group()
def audit() -> None:
    """Who did what: a chain of entries, of which none can be changed unnoticed."""


@audit.command("list")
@click.option(
    "--limit", type=click.IntRange(1, PAGE), default=50, show_default=True, help="How many."
)
@uri_option
@database_option
@json_option
def audit_list(limit: int, uri: str, database: str | None, as_json: bool) -> None:
    """The newest entries.

    \b
    superduper audit list --limit 20
    """
    if is_server(uri):
        rows = ask_server("GET", uri, f"/v1/audit?limit={limit}")
    else:
        from superduper.store.audit import Audit, shown

        with mongo_of(uri, database) as found:
            rows = [shown(entry) for entry in Audit(found).last(limit)]
    print_rows(rows, COLUMNS, as_json=as_json)


@audit.command("verify")
@click.option(
    "--noted",
    multiple=True,
    metavar="NUMBER:HASH",
    help="An entry's hash that was kept elsewhere, as an earlier verify or the server's log said.",
)
@uri_option
@database_option
@json_option
def audit_verify(noted: tuple[str, ...], uri: str, database: str | None, as_json: bool) -> None:
    """Check every link of the chain; name the first that is broken, and exit with 1.

    Keep what it prints: with --noted the next time, it also shows if the end was cut off or the
    log was written anew.

    \b
    superduper audit verify --noted "$(cat noted)"
    """
    from superduper.store.audit import Audit, broken_link

    known = dict(map(_noted, noted))
    newest: dict[str, Any] = {}

    def watched(entries: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for entry in entries:
            newest.update(entry)
            yield entry

    if is_server(uri):
        problem = broken_link(watched(_from_server(uri)), known)
    else:
        with mongo_of(uri, database) as found:
            problem = broken_link(watched(Audit(found).entries()), known)
    if problem is not None:
        raise BrokenChain(problem)
    entries = newest.get("_id", 0)
    whole = {"entries": entries, "noted": f"{entries}:{newest['hash']}" if entries else None}
    print_record(whole, as_json=as_json)


def _noted(text: str) -> tuple[int, str]:
    found = NOTED.fullmatch(text)
    if found is None:
        raise InvalidInput(f"--noted {text[:20]!r}: write an entry's number, a colon, its hash")
    return int(found[1]), found[2]


def _from_server(uri: str) -> Iterator[dict[str, Any]]:
    after = 0
    while page := ask_server("GET", uri, f"/v1/audit?after={after}&limit={PAGE}"):
        for entry in page:
            yield {("_id" if key == "number" else key): value for key, value in entry.items()}
        after += len(page)
