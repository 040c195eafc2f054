"""Write the pages that are made from the code: settings, REST API, errors, command line."""

from pathlib import Path

import click

from superduper import errors
from superduper.command import PLURALS, Command, words_of
from superduper.commands import all_commands
from superduper.settings import SETTINGS
from superduper_server.cli_root import superduper

DOCS = Path(__file__).parent.parent / "docs"
MADE = "<!-- Made by scripts/docs from the code: change it there. -->"


def settings_page() -> str:
    """The table of settings."""
    rows = [
        f"| `{r.variable}` | {f'`{r.default}`' if r.default else ''} | {r.help} |" for r in SETTINGS
    ]
    return "\n".join(
        [
            "# Settings",
            "",
            MADE,
            "",
            "Settings come from the environment; a command's own flag wins over them.",
            "`superduper doctor` shows the value of each and where it came from.",
            "",
            "| variable | default | what it is |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def rest_page() -> str:
    """The table of routes, and what holds for all of them."""
    rows = []
    for command in all_commands():
        route = command.route
        text = (command.__doc__ or "").split("\n")[0]
        for path in _paths(command):
            rows.append(f"| `{route.method} {path}` | {route.role} | {text} |")
    kinds = ", ".join(f"`{plural}`" for plural in PLURALS.values())
    return "\n".join(
        [
            "# REST API",
            "",
            MADE,
            "",
            (DOCS / "rest_intro.txt").read_text().strip(),
            "",
            f"`{{kind}}s` is one of {kinds}.",
            "",
            "| route | role | what it does |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _paths(command: type[Command]) -> list[str]:
    """The paths of a command: those for kinds of components, which are many, as one."""
    path = command.route.path
    if "{kinds}" not in path:
        return [path]
    words = [word for kind, word in words_of(command).items() if kind not in PLURALS]
    if not words:
        return [path.replace("{kinds}", "{kind}s")]
    return [path.replace("{kinds}", word) for word in words_of(command).values()]


def errors_page() -> str:
    """The table of errors."""
    rows = [
        f"| `{name}` | `{item.code}` | {item.status} | {(item.__doc__ or '').strip()} |"
        for name, item in sorted(vars(errors).items())
        if isinstance(item, type) and issubclass(item, errors.SuperduperError)
    ]
    return "\n".join(
        [
            "# Errors",
            "",
            MADE,
            "",
            "The same class is raised in-process and over HTTP. Over HTTP the body is",
            '`{"error": {"code", "message", "request_id"}}`.',
            "",
            "| class in `superduper.errors` | code | HTTP status | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def cli_page() -> str:
    """What each command says of itself."""
    blocks = [_help(superduper, "superduper", None)]
    root = click.Context(superduper, info_name="superduper")
    for name, command in sorted(superduper.commands.items()):
        blocks += _helps(command, name, root)
    return "\n".join(["# Command line", "", MADE, "", *blocks])


def _helps(command: click.Command, name: str, parent: click.Context) -> list[str]:
    context = click.Context(command, info_name=name, parent=parent)
    found = [_help(command, context.command_path, parent)]
    if isinstance(command, click.Group):
        for inner, each in sorted(command.commands.items()):
            found += _helps(each, inner, context)
    return found


def _help(command: click.Command, path: str, parent: click.Context | None) -> str:
    context = click.Context(
        command, info_name=path.rsplit(" ", 1)[-1], parent=parent, terminal_width=96
    )
    return f"## `{path}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n"


def pages() -> dict[Path, str]:
    """Every page that is made from the code."""
    return {
        DOCS / "settings.md": settings_page(),
        DOCS / "rest.md": rest_page(),
        DOCS / "errors.md": errors_page(),
        DOCS / "cli.md": cli_page(),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(f"wrote {path.relative_to(DOCS.parent)}")
