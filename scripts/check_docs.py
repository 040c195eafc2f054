"""What the documentation must agree with: the code, the version, its own links."""

import re
import sys

from reference import DOCS, pages

from superduper.version import __version__

ROOT = DOCS.parent
WRITTEN = [
    *sorted(DOCS.glob("**/*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
]
EVENT = re.compile(r'extra=\{"event": "([a-z_.]+)"')
LINK = re.compile(r"\[[^\]]+\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")


def problems() -> list[str]:
    """Every disagreement, one line each."""
    found = []
    changelog = (ROOT / "CHANGELOG.md").read_text()
    if f"## [{__version__}]" not in changelog and "## [Unreleased]" not in changelog:
        found.append(f"CHANGELOG.md has neither {__version__} nor Unreleased")
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            found.append(f"{path.relative_to(ROOT)} is not what the code says: run scripts/docs")
    events, told = logged_events(), (DOCS / "operations.md").read_text()
    found += [f"docs/operations.md has no `{each}`" for each in events if f"`{each}`" not in told]
    for page in WRITTEN:
        for target in LINK.findall(page.read_text()):
            if not (page.parent / target).exists():
                found.append(f"{page.relative_to(ROOT)} links to {target}, which is not there")
    return found


def logged_events() -> list[str]:
    """What the `event` of a log record may be."""
    sources = [
        path for name in ("superduper", "server", "client") for path in (ROOT / name).rglob("*.py")
    ]
    return sorted({each for path in sources for each in EVENT.findall(path.read_text())})


def main() -> None:
    """Print the disagreements; exit 1 if there are any."""
    found = problems()
    for line in found:
        print(line)
    print(f"documentation: {len(WRITTEN)} pages, {len(found)} problems")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
