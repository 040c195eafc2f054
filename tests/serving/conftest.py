"""Fixtures for models in child processes: sealed, signed and registered for real."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo.database import Database

from superduper.fields.sealing import seal
from superduper.imputations.hosting import launch
from superduper.serving.host import ModelHost
from superduper.store.artifacts import ArtifactStore
from superduper.store.component import Component
from superduper.store.registry import Registry
from superduper.store.signing import Keyring

Register = Callable[..., Component]


@pytest.fixture
def registry(database: Database[dict[str, Any]]) -> Registry:
    return Registry(database, ArtifactStore(database, Keyring.open()))


@pytest.fixture
def register(registry: Registry) -> Register:
    """Registers an object, with its preprocess and postprocess."""

    def register(name: str, thing: Any, kind: str = "model", **parts: Any) -> Component:
        sealed = seal({"object": thing, "preprocess": None, "postprocess": None, **parts})
        return registry.register("c", kind, name, sealed, author="tests", details={})

    return register


@pytest.fixture
def open_host(registry: Registry, register: Register) -> Iterator[Callable[..., ModelHost]]:
    """Opens a model host for an object; all are closed afterwards."""
    opened: list[ModelHost] = []

    def open_host(thing: Any, **parts: Any) -> ModelHost:
        component = register("m", thing, **parts)
        opened.append(ModelHost(registry.payload(component), "c/model/m", launch))
        return opened[-1]

    yield open_host
    for host in opened:
        host.close()
