"""Which run is best, among runs that were measured on the same data."""

import math
from pathlib import Path
from typing import Any

from superduper.training.ranking import is_cost
from superduper.training.run_folder import runs_in


def highscores(
    root: str | Path, metric: str, higher_is_better: bool | None = None
) -> list[dict[str, Any]]:
    """The finished runs in a folder and below it, best first within each group of equal data.

    A run is scored on its test data; one without, by its best epoch on validation data. Runs are
    comparable only where `data_hash` is equal: those of one group stand together and are ranked
    from 1. Without `higher_is_better`, less is better of what ends in loss, error, mse or mae.
    """
    high = not is_cost(metric) if higher_is_better is None else higher_is_better
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path, record in runs_in(root):
        row = _score(path, record, metric, high)
        if row is not None:
            groups.setdefault((row["fold"], row["data_hash"]), []).append(row)
    ranked: list[dict[str, Any]] = []
    for _, rows in sorted(groups.items()):
        rows.sort(key=lambda row: -row["value"] if high else row["value"])
        ranked += [{"rank": rank, **row} for rank, row in enumerate(rows, 1)]
    return ranked


def _score(path: Path, record: dict[str, Any], metric: str, high: bool) -> dict[str, Any] | None:
    """How a run is scored; None if it was not measured or not finished."""
    if record["status"] != "finished":
        return None
    test = record["data"].get("test")
    if test is not None:
        fold, epoch, value = "test", record["epochs"], record["test"].get(metric)
    else:
        fold = "validate"
        epoch, value = _best(record["history"], f"validate_{metric}", high)
    data = record["data"].get(fold)
    if data is None or data["hash"] is None or value is None or math.isnan(value):
        return None
    return {
        "run": str(path),
        "metric": metric,
        "value": value,
        "epoch": epoch,
        "fold": fold,
        "data_hash": data["hash"],
        "n": data["n"],
        "finished_at": record["finished_at"],
    }


def _best(
    history: list[dict[str, Any]], column: str, high: bool
) -> tuple[int | None, float | None]:
    rows = [row for row in history if row.get(column) is not None and row[column] == row[column]]
    if not rows:
        return None, None
    best = (max if high else min)(rows, key=lambda row: row[column])
    return best["epoch"], best[column]
