"""Commands about the keys that sign what is registered: create, rotate, revoke.

Keys are files of this machine. What is done to them is noted in the audit log of the database that
`--uri` or SUPERDUPER_URI names.
"""

from collections.abc import Callable
from typing import Any

import click

from superduper import settings
from superduper_server.cli_options import (
    database_option,
    is_server,
    json_option,
    mongo_of,
    print_record,
)

UNNOTED = "This is in no audit log: pass --uri with the database's address."

_purpose_option = click.option(
    "--purpose",
    type=click.Choice(["code", "weights"]),
    default="code",
    show_default=True,
    help="code signs whatever is registered; weights only what a worker trains.",
)
_audit_option = click.option(
    "--uri",
    envvar="SUPERDUPER_URI",
    help="The database whose audit log is to tell of it: embedded:PATH or mongodb://...",
)


@click.group()
def key() -> None:
    """Keys that sign what is registered."""


@key.command("create")
@_purpose_option
@_audit_option
@database_option
@json_option
def key_create(purpose: Any, as_json: bool, **audit: Any) -> None:
    """Make a signing key for this machine; its public half goes to the machines that load.

    \b
    superduper key create --purpose weights
    """
    from superduper.store.signing import Keyring

    def create() -> dict[str, Any]:
        return _made(Keyring.open().create(purpose), purpose)

    print_record(_noted(create, "CreateKey", f"purpose={purpose}", **audit), as_json=as_json)


@key.command("rotate")
@_purpose_option
@_audit_option
@database_option
@json_option
def key_rotate(purpose: Any, as_json: bool, **audit: Any) -> None:
    """Make a key that signs from now on in the place of the earlier ones.

    What those signed stays good; their private halves are removed. Copy the new public half to
    the machines that load.

    \b
    superduper key rotate
    """
    from superduper.store.rotation import rotate

    def replace() -> dict[str, Any]:
        return _made(rotate(settings.home(), purpose), purpose)

    print_record(_noted(replace, "RotateKey", f"purpose={purpose}", **audit), as_json=as_json)


@key.command("revoke")
@click.argument("id")
@_audit_option
@database_option
@json_option
def key_revoke(id: str, as_json: bool, **audit: Any) -> None:
    """Trust the key with this ID no more, on this machine.

    What it signed is not loaded any more: register it again. What is loaded goes on until its
    process ends. The files are moved to keys/revoked.

    \b
    superduper key revoke 0123456789abcdef
    """
    from superduper.store.rotation import revoke

    def withdraw() -> dict[str, Any]:
        return {"key": id, "moved_to": str(revoke(settings.home(), id))}

    print_record(_noted(withdraw, "RevokeKey", f"id={id}", **audit), as_json=as_json)


def _made(id: str, purpose: str) -> dict[str, Any]:
    return {"key": id, "purpose": purpose, "public": f"{settings.home() / 'keys' / id}.pub"}


def _noted(
    act: Callable[[], dict[str, Any]],
    action: str,
    subject: str,
    *,
    uri: str | None,
    database: str | None,
) -> dict[str, Any]:
    """Do it between two entries of the audit log, if there is one; otherwise say that it is not."""
    if not uri or is_server(uri):
        made = act()
        click.echo(UNNOTED, err=True)
        return made
    from superduper.store.audit import Audit

    def noting() -> dict[str, Any]:
        made = act()
        return {**made, "content": made["key"]}

    with mongo_of(uri, database) as found:
        made = Audit(found).around(noting, who="cli", action=action, subject=subject)
    return {name: value for name, value in made.items() if name != "content"}
