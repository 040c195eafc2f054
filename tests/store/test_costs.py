"""What looking at components costs does not grow with how many versions they have."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.monitoring import CommandListener, CommandStartedEvent

from superduper.fields.sealing import seal
from superduper.store.artifacts import ArtifactStore
from superduper.store.registry import Registry
from superduper.store.signing import Keyring

VERSIONS = 100


class Counting(CommandListener):
    """The names of the commands that were sent."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.names.append(event.command_name)

    def succeeded(self, event: Any) -> None:
        """Not needed."""

    def failed(self, event: Any) -> None:
        """Not needed."""


@pytest.fixture
def commands() -> Counting:
    return Counting()


@pytest.fixture
def registry(
    store_uri: str, database: Database[Any], commands: Counting, tmp_path: Path
) -> Iterator[Registry]:
    with MongoClient[dict[str, Any]](store_uri, event_listeners=[commands]) as client:
        yield Registry(
            client[database.name], ArtifactStore(client[database.name], Keyring.open(tmp_path))
        )


def test_looking_costs_the_same_with_a_hundred_versions(
    registry: Registry, commands: Counting
) -> None:
    def costs() -> dict[str, list[str]]:
        found = {}
        for name, look in {
            "get": lambda: registry.get("docs", "model", "m"),
            "get a version": lambda: registry.get("docs", "model", "m", 1),
            "list": lambda: registry.list("docs", "model"),
            "payload": lambda: registry.payload(registry.get("docs", "model", "m")),
            "register the same": lambda: register(1),
        }.items():
            commands.names.clear()
            look()
            found[name] = list(commands.names)
        return found

    def register(number: int) -> int:
        sealed = seal({"object": complex(number, number).__add__})
        return registry.register("docs", "model", "m", sealed, author="a").version

    assert register(1) == 1
    first = costs()
    assert [register(number) for number in range(2, VERSIONS + 1)] == [*range(2, VERSIONS + 1)]
    assert costs() == first
    assert len(first["get"]) == len(first["list"]) == 2
