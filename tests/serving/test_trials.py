"""How far the answers of two versions are apart."""

import math
from typing import Any

import numpy as np
import pytest

from superduper.fields.codec import encode
from superduper.serving.trials import difference

NAN = math.nan


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        (1, 1.5, 0.5),
        ("cat", "cat", 0.0),
        ("cat", "dog", math.inf),
        (True, 1, math.inf),
        (None, None, 0.0),
        (NAN, NAN, 0.0),
        (NAN, 1.0, math.inf),
        (math.inf, math.inf, 0.0),
        ([1, 2], [1, 4], 2),
        ([1, 2], [1], math.inf),
        ({"a": 1, "b": "x"}, {"a": 1.25, "b": "x"}, 0.25),
        ({"a": 1}, {"b": 1}, math.inf),
        (np.float32([1, 2]), np.float32([1, 2.5]), 0.5),
        (np.float32([1, NAN]), np.float32([1.5, NAN]), 0.5),
        (np.float32([1, 2]), np.float32([[1, 2]]), math.inf),
        (np.array([0, 200], "u1"), np.array([200, 0], "u1"), 200),
    ],
)
def test_difference_of_two_outcomes(first: Any, second: Any, apart: float) -> None:
    one, other = [{"value": encode(first)}], [{"value": encode(second)}]
    assert difference(one, other) == difference(other, one) == apart
    assert difference(one + one, one + other) == apart


def test_failures_are_compared_as_such() -> None:
    failed, fine = [{"error": {"message": "x"}}], [{"value": 1}]
    assert difference(failed, [{"error": {"message": "y"}}]) == 0.0
    assert difference(failed, fine) == math.inf
    assert difference([], []) == 0.0
