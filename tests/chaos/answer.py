"""The models of the chaos harness: plain functions of the input, known to worker and checker."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

POISON = "poison"


def is_poison(value: Any) -> bool:
    """Whether the model fails on this input."""
    return isinstance(value, Mapping) and POISON in value


def spelled(value: Any) -> str:
    """A value as text, the same for what the driver reads and for what the model is given."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{spelled(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(spelled(each) for each in value) + "]"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(float(value))
    return f"{type(value).__name__} {value}"


def answer(value: Any, version: int, field: str) -> str:
    """What version `version` makes of a value that is no poison, for a field."""
    return f"{field}{version}|{spelled(value)}"


def model(version: int, field: str) -> Callable[[Any], str]:
    """Version `version` for a field; on poison it raises, ends its process or never returns."""

    def predict(value: Any) -> str:
        if is_poison(value):
            if value[POISON] == "exit":
                os._exit(3)
            if value[POISON] == "hang":
                time.sleep(3600)
            raise ValueError(f"this is poison: {value[POISON]}")
        return answer(value, version, field)

    return predict
