"""The command for faster forms of a model: which one is wished for, and which serves."""

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


@click.command(short_help="Faster forms of a model.")
@click.argument("collection")
@click.argument("name")
@click.option("--set", "form", metavar="FORM", help="bf16, int8, onnx, compiled, auto or plain.")
@click.option("--tolerance", type=float, help="Of numbers, as a part of the largest; 0.01.")
@click.option("--agreement", type=float, help="The share of inputs with the same label; 0.99.")
@uri_option
@database_option
@json_option
def form(
    collection: str,
    name: str,
    form: str | None,
    tolerance: float | None,
    agreement: float | None,
    uri: str,
    database: str | None,
    as_json: bool,
) -> None:
    """Which form of the model NAME serves, and how those that were tried did; or set it.

    A form is compared with the plain one on the model's sample, and on inputs given from Python.

    \b
    superduper form documents digits --set auto --tolerance 0.02
    superduper form documents digits
    superduper form documents digits --set plain
    """
    from superduper import commands

    asked = {"collection": collection, "name": name}
    limits = {
        key: value
        for key, value in (("tolerance", tolerance), ("agreement", agreement))
        if value is not None
    }
    if limits and form is None:
        raise InvalidInput("--tolerance and --agreement go with --set")
    with connected(uri, database) as there:
        if form is not None:
            found = ask(there, commands.SetForm, **asked, form=form, **limits)
        else:
            found = ask(there, commands.ShowForm, **asked)
    print_record(found, as_json=as_json)
