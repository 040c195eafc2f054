"""How answers look: tables on a terminal, tables in a notebook, plain values underneath."""

import datetime
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_CELL = 40
MAX_ROWS = 50


def cell(name: str, value: object) -> str:
    """One value as short text; in a column that ends with `at`, milliseconds are a moment (UTC)."""
    if value is None:
        return ""
    if isinstance(value, int) and (name == "at" or name.endswith("_at")):
        moment = datetime.datetime.fromtimestamp(value / 1000, datetime.UTC)
        return moment.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, Mapping):
        return cell(name, ", ".join(f"{key} {cell('', each)}" for key, each in value.items()))
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value).replace("\n", " ")
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 1]}…"


def text_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as aligned text with a header line."""
    grid = [list(columns)] + [[cell(name, row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in grid) for i in range(len(columns))]
    lines = ["  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)) for line in grid]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def html_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as an HTML table without scripts; every value is escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(c, row.get(c)))}</td>" for c in columns) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Table(list[dict[str, Any]]):
    """A list of rows that shows itself as a table."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
        super().__init__(dict(row) for row in rows)
        self.columns = tuple(columns)

    def _rest(self) -> str:
        return f"\n… and {len(self) - MAX_ROWS} more" if len(self) > MAX_ROWS else ""

    def __repr__(self) -> str:
        if not self:
            return "(nothing)"
        return text_table(self[:MAX_ROWS], self.columns) + self._rest()

    def _repr_html_(self) -> str:
        return html_table(self[:MAX_ROWS], self.columns) + html.escape(self._rest())
