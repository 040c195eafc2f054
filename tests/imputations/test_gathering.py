"""What a worker asks of the store while inserts come, and while none do."""

from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.monitoring import CommandListener
from watching import Watching

from superduper.imputations.watching import turn, watch
from tests.waiting import until

FIELDS = ("a", "b", "c")


class Asked(CommandListener):
    """The waits of requests for changes in milliseconds, and the updates of documents."""

    def __init__(self) -> None:
        self.waits: list[int] = []
        self.updates: list[Any] = []

    def started(self, event: Any) -> None:
        command = event.command
        if "maxTimeMS" in command and event.command_name == "getMore":
            self.waits.append(command["maxTimeMS"])
        elif command.get("update") == "docs":
            self.updates += command["updates"]

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


def shout(value: str) -> str:
    return value.upper()


def test_one_update_for_each_document_and_nobody_waits_while_they_come(
    database: Database[Any], store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "JOIN_SECONDS", 60.0)
    asked = Asked()
    docs = database["docs"]

    def insert(number: int) -> None:
        docs.insert_one({"_id": number, "x": f"text {number}"})
        until(lambda: set(FIELDS) <= set(docs.find_one({"_id": number})))

    with MongoClient[Any](store_uri, w="majority", event_listeners=[asked]) as client:
        watching = Watching(client[database.name])
        for name in FIELDS:
            watching.live(shout, writes=(name,), name=name)
        with watching.running():
            until(lambda: all(watching.status(name) == "watching" for name in FIELDS))
            insert(0)  # the models are loaded now
            before, waited = len(asked.updates), len(asked.waits)
            for number in range(1, 6):
                insert(number)
            assert len(asked.updates) == before + 5
            assert 1 in asked.waits[waited:]
            until(lambda: asked.waits[-1] == watch.WAIT_MS)
    assert docs.count_documents({f"_fill.{name}.version": 1 for name in FIELDS}) == 6
