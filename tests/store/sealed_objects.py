"""Sealed objects, and where they are registered."""

import dataclasses
import functools
from typing import Any

from superduper.fields.sealing import Sealed, seal
from superduper.store.component import Component
from superduper.store.registry import Registry


def register(registry: Registry, name: str, sealed: Sealed) -> Component:
    return registry.register("docs", "model", name, sealed, author="a")


@functools.cache
def honest(number: int = 1) -> Sealed:
    return seal({"object": lambda x: x + number, "preprocess": None, "postprocess": None})


def of_another_python(thing: Any) -> Sealed:
    """As if sealed by Python 3.12; its bytecode, which must not be touched, is no pickle at all."""
    sealed = seal({"object": thing})
    return dataclasses.replace(
        sealed, code=b"bytecode of another Python", python_tag="cpython-312", magic="cb0d0d0a"
    )
