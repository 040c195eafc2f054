"""Which of two measured values is better. Needs no torch: the database's side uses it too."""

import math
from collections.abc import Mapping
from typing import Any


def prefers_high(metric: Any) -> bool:
    """Whether a greater value is better: yes, unless the metric says `higher_is_better = False`."""
    return getattr(metric, "higher_is_better", True) is not False


def is_cost(name: str) -> bool:
    """Whether less is better of what has this name, where nothing else says so."""
    return name.lower().endswith(("loss", "error", "mse", "mae", "rmse"))


def is_better(value: float, than: float | None, higher_is_better: bool) -> bool:
    """Whether a value beats another; anything beats none, and nothing that is not a number wins."""
    if math.isnan(value):
        return False
    if than is None or math.isnan(than):
        return True
    return value > than if higher_is_better else value < than


def improves(
    measured: Mapping[str, float],
    best: Mapping[str, float] | None,
    watch: str,
    higher_is_better: bool,
) -> bool:
    """Whether what was measured beats the best so far by the watched quantity.

    Metrics on few documents are often equal: then the one with the lower loss is better.
    """
    if best is None:
        return not math.isnan(measured[watch])
    if measured[watch] == best[watch] and watch != "loss":
        return is_better(measured.get("loss", math.nan), best.get("loss"), False)
    return is_better(measured[watch], best[watch], higher_is_better)
