"""All commands under one name, and what becomes of their errors."""

import sys
from typing import Any

import click

import superduper as package
from superduper.errors import MissingExtra, SuperduperError
from superduper_server import (
    cli_admin,
    cli_audit,
    cli_form,
    cli_keys,
    cli_run,
    cli_show,
    cli_traffic,
)

# Which extra brings a module that is missing.
EXTRAS = {
    **dict.fromkeys(("fastapi", "starlette", "uvicorn", "orjson", "prometheus_client"), "server"),
    **dict.fromkeys(("torch", "numpy", "safetensors", "cryptography", "psutil"), "torch"),
    "secantus": "embedded",
}


class Root(click.Group):
    """Our own errors are one line and exit code 1; a missing extra is exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except MissingExtra as error:
            _end(error.message, 2)
        except SuperduperError as error:
            _end(error.message, 1)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            _end(MissingExtra.of(extra, f"superduper {ctx.invoked_subcommand}").message, 2)


def _end(message: str, code: int) -> None:
    click.echo(f"superduper: {message}", err=True)
    sys.exit(code)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package.__version__, prog_name="superduper")
def superduper() -> None:
    """A MongoDB collection whose missing fields fill themselves.

    \b
    superduper up                     store, worker and server in one
    superduper status                 what is going on
    superduper COMMAND --help         more about one command

    Settings come from the environment (SUPERDUPER_URI, SUPERDUPER_TOKEN, ...): `superduper doctor`
    shows them. Completion in your shell: `eval "$(_SUPERDUPER_COMPLETE=bash_source superduper)"`
    (or zsh_source, fish_source).
    """


for _command in (
    *cli_run.COMMANDS,
    *cli_show.COMMANDS,
    *cli_admin.COMMANDS,
    cli_keys.key,
    cli_audit.audit,
    cli_traffic.traffic,
    cli_form.form,
):
    superduper.add_command(_command)
