"""Which of two measured values is better. Needs no torch: the database's side uses it too."""

import math
from typing import Any


def prefers_high(metric: Any) -> bool:
    """Whether a greater value is better: yes, unless the metric says `higher_is_better = False`."""
    return getattr(metric, "higher_is_better", True) is not False


def is_better(value: float, than: float | None, higher_is_better: bool) -> bool:
    """Whether a value beats another; anything beats none, and nothing that is not a number wins."""
    if math.isnan(value):
        return False
    if than is None or math.isnan(than):
        return True
    return value > than if higher_is_better else value < than
