"""What steps return, collected over an epoch: dicts of batch sums, zipped, merged and printed."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from superduper.errors import InvalidInput

Results = dict[str, Any]


def zip_dicts(*dicts: Any) -> dict[str, list[Any]]:
    """The values of several dicts, listed by key: `[{"a": 1}, {"a": 2}]` is `{"a": [1, 2]}`.

    Takes one list of dicts, or the dicts themselves. Not every dict has to have every key.
    """
    several = not (len(dicts) == 1 and not isinstance(dicts[0], Mapping))
    zipped: dict[str, list[Any]] = {}
    for each in dicts if several else dicts[0]:
        for key, value in each.items():
            zipped.setdefault(key, []).append(value)
    return zipped


def merge_add_level(**levels: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Dicts by name, turned inside out: `train={"loss": 1}` is `{"loss": {"train": 1}}`."""
    merged: dict[str, dict[str, Any]] = {}
    for level, values in levels.items():
        for key, value in values.items():
            merged.setdefault(key, {})[level] = value
    return merged


def detached(results: Any, step: str) -> Results:
    """A step's results without their autograd history.

    Raises InvalidInput for what is not a dict of single numbers.
    """
    if not isinstance(results, Mapping):
        raise InvalidInput(
            f"{step} returned a {type(results).__name__}: return a dict of sums over the batch, "
            "such as dict(log_prob=log_prob.sum())"
        )
    return {str(key): _number(value, step, key) for key, value in results.items()}


def _number(value: Any, step: str, key: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise InvalidInput(
                f"{step} returned {key!r} of shape {tuple(value.shape)}: return its sum over the "
                "batch"
            )
        return value.detach().reshape(())
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"{step} returned {key!r} as a {type(value).__name__}: return a number"
        ) from error


def mean_over(results: Iterable[Results], n: int) -> dict[str, float]:
    """Sums over an epoch, per record."""
    return {key: float(sum(values)) / max(n, 1) for key, values in zip_dicts(results).items()}


def flattened(summary: Mapping[str, Any]) -> dict[str, float]:
    """A summary as one row: `{"loss": {"train": 1}}` is `{"train_loss": 1}`.

    Raises InvalidInput for what is no dict of numbers, or of dicts of numbers.
    """
    row: dict[str, float] = {}
    try:
        for key, value in summary.items():
            if isinstance(value, Mapping):
                row.update({f"{level}_{key}": float(each) for level, each in value.items()})
            else:
                row[key] = float(value)
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"summarize_epoch returned {summary!r:.200}: return a dict of numbers, such as "
            'dict(accuracy={"train": 0.9, "validate": 0.8})'
        ) from error
    return row
