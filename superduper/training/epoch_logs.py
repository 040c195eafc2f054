"""Policies that write down each epoch: losses, the policies' values, metrics.

On the console a line for each, in TensorBoard's event files a tag, in CSV and JSON lines a column.
"""

import csv
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from superduper.training.event_file import EventFile
from superduper.training.policies import Policy
from superduper.training.run_folder import write_whole, written
from superduper.training.run_logs import finite, write_csv


class ConsoleLogger(Policy):
    """Prints a line for each loss, value and metric of an epoch."""

    def epoch_finished(
        self,
        epoch: int,
        train_losses: Sequence[Any],
        metrics: Mapping[str, Any] | None = None,
        policies: Mapping[str, Any] | None = None,
    ) -> None:
        """Print the epoch."""
        mean = mean_losses(train_losses)
        if isinstance(mean, Mapping):
            text = " ".join(f"{name}: {value}" for name, value in mean.items())
        else:
            text = str(mean)
        lines = [f"Train loss: {text}"]
        lines += [f"Policies: {name}: {value}" for name, value in (policies or {}).items()]
        lines += [f"Metrics: {name}: {value}" for name, value in (metrics or {}).items()]
        print("\n".join(f"{epoch:>05}: {line}" for line in lines), flush=True)


class TensorBoardLogger(Policy):
    """Writes scalars for TensorBoard: `train/loss`, `policies/<name>`, `val/metrics/<name>`.

    A dictionary of losses has the tags `train/loss/<name>`, an array `train/loss/<number>`.
    """

    def __init__(self, log_path: str | Path) -> None:
        self.folder = Path(log_path).expanduser()
        self._file: EventFile | None = None

    def epoch_finished(
        self,
        epoch: int,
        train_losses: Sequence[Any],
        metrics: Mapping[str, Any] | None = None,
        policies: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the epoch."""
        with written(self.folder):
            if self._file is None:
                # What an earlier file has of this epoch and later ones, TensorBoard forgets.
                self._file = EventFile(self.folder, from_step=epoch or None)
            self._file.add(scalars(train_losses, metrics, policies), epoch)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            with written(self.folder):
                file.close()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a training that goes on begins a file of its own."""
        return {}


class _RowLogger(Policy, ABC):
    """A file with a row for each epoch; one that goes on drops the rows it will write again."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.rows: list[dict[str, Any]] | None = None
        self._kept: int | None = None

    def run_started(self) -> None:
        """Read the rows that are there."""
        self.rows = self._read()[: self._kept] if self.path.exists() else []
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def epoch_finished(
        self,
        epoch: int,
        train_losses: Sequence[Any],
        metrics: Mapping[str, Any] | None = None,
        policies: Mapping[str, Any] | None = None,
    ) -> None:
        """Add the epoch's row; the file is replaced as a whole."""
        assert self.rows is not None  # the run has started
        self.rows.append({"epoch": epoch, **scalars(train_losses, metrics, policies)})
        self._write(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """The number of rows."""
        return {"rows": len(self.rows or [])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._kept = state["rows"]

    @abstractmethod
    def _read(self) -> list[dict[str, Any]]: ...

    @abstractmethod
    def _write(self, rows: list[dict[str, Any]]) -> None: ...


class CSVLogger(_RowLogger):
    """Writes a CSV file; a column that comes up later is empty in earlier rows."""

    def _read(self) -> list[dict[str, Any]]:
        with self.path.open(encoding="utf-8", newline="") as file:
            return [dict(row) for row in csv.DictReader(file)]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        write_csv(self.path, rows)


class JSONLogger(_RowLogger):
    """Writes a JSON object per line."""

    def _read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        lines = [json.dumps(finite(row)) + "\n" for row in rows]
        write_whole(self.path, "".join(lines).encode())


def mean_losses(train_losses: Sequence[Any]) -> Any:
    """The mean of an epoch's losses: a number, an array, or a dictionary of these."""
    if not train_losses:
        return math.nan
    if isinstance(train_losses[0], Mapping):
        names = dict.fromkeys(name for losses in train_losses for name in losses)
        return {
            name: mean_losses([losses[name] for losses in train_losses if name in losses])
            for name in names
        }
    return numpy.mean(train_losses, axis=0)


def scalars(
    train_losses: Sequence[Any],
    metrics: Mapping[str, Any] | None,
    policies: Mapping[str, Any] | None,
) -> dict[str, float]:
    """Everything of an epoch that is a number, by tag."""
    tags = dict(_tagged("train/loss", mean_losses(train_losses)))
    tags |= _tagged("policies", policies or {})
    return tags | dict(_tagged("val/metrics", metrics or {}))


def _tagged(tag: str, value: Any) -> Iterable[tuple[str, float]]:
    """A number under its tag; parts of anything else under `<tag>/<name or number>`."""
    if isinstance(value, Mapping):
        return [each for name in value for each in _tagged(f"{tag}/{name}", value[name])]
    try:
        array = numpy.asarray(value, dtype=numpy.float64)
    except (TypeError, ValueError):
        return []  # a policy's value may be anything, a text say
    if array.size == 1:
        return [(tag, float(array.reshape(())))]
    return [(f"{tag}/{number}", float(each)) for number, each in enumerate(array.ravel())]
