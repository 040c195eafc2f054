"""The command for versions on trial: what share they have, and how they do."""

import click

from superduper.errors import InvalidInput
from superduper_server.cli_options import (
    ask,
    connected,
    database_option,
    json_option,
    print_record,
    uri_option,
)


@click.command(short_help="Versions on trial: canary and shadow.")
@click.argument("collection")
@click.argument("name")
@click.option("--imputation", is_flag=True, help="NAME is that of an imputation, not of a model.")
@click.option("--canary", metavar="VERSION:SHARE", help="A version, and its share of the requests.")
@click.option("--shadow", metavar="VERSION[:SHARE]", help="A version that is only compared.")
@click.option("--none", "is_cleared", is_flag=True, help="Everything goes to the live version.")
@uri_option
@database_option
@json_option
def traffic(
    collection: str,
    name: str,
    imputation: bool,
    canary: str | None,
    shadow: str | None,
    is_cleared: bool,
    uri: str,
    database: str | None,
    as_json: bool,
) -> None:
    """Which versions of the model NAME answer what servers are asked, with counts; or set it.

    What is set takes the place of what was before.

    \b
    superduper traffic documents digits --canary 4:0.1 --shadow 5
    superduper traffic documents digits
    superduper traffic documents digits --none
    """
    from superduper import commands

    asked = {
        "collection": collection,
        "kind": "imputation" if imputation else "model",
        "name": name,
    }
    sides = {
        side: _share(text)
        for side, text in (("canary", canary), ("shadow", shadow))
        if text is not None
    }
    if sides and is_cleared:
        raise InvalidInput("--none stands alone: it takes every share away")
    with connected(uri, database) as there:
        if sides or is_cleared:
            found = ask(there, commands.SetTraffic, **asked, **sides)
        else:
            found = ask(there, commands.ShowTraffic, **asked)
    print_record(found, as_json=as_json)


def _share(text: str) -> dict[str, float]:
    version, _, share = text.partition(":")
    try:
        return {"version": int(version), **({"share": float(share)} if share else {})}
    except ValueError as error:
        raise InvalidInput(f"{text[:40]!r}: write VERSION:SHARE, such as 4:0.1") from error
