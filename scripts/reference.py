"""Write the reference pages that are made from the code: settings, REST API, errors."""

from pathlib import Path

from superduper import errors
from superduper.commands import PLURALS, all_commands
from superduper.settings import SETTINGS

DOCS = Path(__file__).parent.parent / "docs"
MADE = "<!-- Made by scripts/docs from the code: change it there. -->"


def settings_page() -> str:
    """The table of settings."""
    rows = [f"| `{r.variable}` | {f'`{r.default}`' if r.default else ''} | {r.help} |" for r in SETTINGS]
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
        path = route.path.replace("{kinds}", "{kind}s")
        text = (command.__doc__ or "").split("\n")[0]
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


def pages() -> dict[Path, str]:
    """Every page that is made from the code."""
    return {
        DOCS / "settings.md": settings_page(),
        DOCS / "rest.md": rest_page(),
        DOCS / "errors.md": errors_page(),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(f"wrote {path.relative_to(DOCS.parent)}")
