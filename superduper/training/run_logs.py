"""Where a run's numbers go: a table on the console, CSV, JSON lines, TensorBoard."""

import csv
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from superduper.training.event_file import EventFile
from superduper.training.ranking import is_better, is_cost
from superduper.training.run_folder import write_whole, written

Row = dict[str, Any]

_COLOURS = ("\033[36m", "\033[32m", "\033[35m", "\033[31m", "\033[34m", "\033[33m")


class Table:
    """A row per epoch, aligned under a header that is printed before the first, as skorch has it.

    The best value of a column so far is coloured where the console knows colours.
    """

    def __init__(self) -> None:
        self._columns: list[str] = []
        self._widths: list[int] = []
        self._best: dict[str, float] = {}

    def print(self, row: Mapping[str, Any]) -> None:
        """Print a row; a new header first, if its columns are others than before."""
        lines = []
        if list(row) != self._columns:
            self._columns = list(row)
            self._widths = [max(len(name) + 2, len(_cell(value))) for name, value in row.items()]
            lines.append(self._line(self._columns))
            lines.append(self._line(["-" * width for width in self._widths]))
        cells = [
            self._painted(index, name, value, _cell(value).rjust(self._widths[index]))
            for index, (name, value) in enumerate(row.items())
        ]
        lines.append("  ".join(cells))
        print("\n".join(lines), flush=True)

    def _line(self, cells: Sequence[str]) -> str:
        return "  ".join(cell.rjust(width) for cell, width in zip(cells, self._widths, strict=True))

    def _painted(self, index: int, name: str, value: Any, cell: str) -> str:
        if not isinstance(value, float) or name == "dur":
            return cell
        if not is_better(value, self._best.get(name), not is_cost(name)):
            return cell
        self._best[name] = value
        return f"{_COLOURS[index % len(_COLOURS)]}{cell}\033[0m" if sys.stdout.isatty() else cell


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


class JsonLines:
    """A line per row, in the order in which they came."""

    def __init__(self, path: Path, epochs: int, step: int) -> None:
        """Keep the rows of so many epochs, and up to a step; later ones will come again."""
        if path.exists():
            lines = path.read_bytes().splitlines()
            kept = [line for line in lines if _is_done(line, epochs, step)]
            write_whole(path, b"".join(line + b"\n" for line in kept))
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        with written(self._path):
            self._file.write(json.dumps(finite(row)) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Nothing more is added."""
        with written(self._path):
            self._file.close()


def _is_done(line: bytes, epochs: int, step: int) -> bool:
    """Whether a line is of an epoch, or of a step, that is done; one that was cut off is not."""
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return bool(row["epoch"] <= epochs if row["event"] == "epoch" else row["step"] <= step)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """All rows under one header: a column that only some rows have is empty in the others."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def finite(row: Mapping[str, Any]) -> Row:
    """A row as JSON knows it: what is no finite number is null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


class TensorBoard:
    """Event files in one folder per level, so that TensorBoard draws them into one chart.

    Positions are epochs, but steps in the level `STEPS`. A run that goes on makes TensorBoard
    forget what was written beyond the position from which it goes on.
    """

    STEPS = "steps"

    def __init__(self, folder: Path, epoch: int = 0, step: int = 0) -> None:
        self.folder = folder
        self._epoch = epoch
        self._step = step
        self._files: dict[str, EventFile] = {}

    def add(self, level: str, scalars: Mapping[str, float], step: int) -> None:
        """Add values of a level by tag."""
        with written(self.folder / level):
            if level not in self._files:
                done = self._step if level == self.STEPS else self._epoch
                self._files[level] = EventFile(self.folder / level, from_step=done + 1)
            self._files[level].add(scalars, step)

    def close(self) -> None:
        """Nothing more is added."""
        with written(self.folder):
            for file in self._files.values():
                file.close()
        self._files.clear()
