"""Large inputs: not sent back to be compared, and yet no value outlives a change of its input."""

from collections.abc import Callable
from typing import Any

import bson
import pytest
from bson import Binary
from bson.binary import BinaryVectorDtype
from filling import Filling, describe, record_of
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.monitoring import CommandListener

from superduper.imputations.fill import LARGE_BYTES, update_of, write
from superduper.imputations.process import Prepared
from superduper.imputations.provenance import input_hash


def vector(first: float) -> Binary:
    return Binary.from_vector([first] * 20_000, BinaryVectorDtype.FLOAT32)


Make = Callable[[int], Any]
LARGE: dict[str, Make] = {
    "text": lambda n: f"{n} " * LARGE_BYTES,
    "bytes": lambda n: bytes([n]) * 2 * LARGE_BYTES,
    "vector": lambda n: vector(float(n)),
    "array": lambda n: [n / 4] * 20_000,
    "document": lambda n: {"shape": [2, LARGE_BYTES], "data": bytes([n]) * 2 * LARGE_BYTES},
}


@pytest.fixture(params=LARGE)
def make(request: pytest.FixtureRequest) -> Make:
    return LARGE[request.param]


@pytest.fixture
def filling(database: Database[Any]) -> Filling:
    return Filling(database)


def assert_filled_from(document: Any, value: Any) -> None:
    assert document["y"] == describe(value)
    assert document["_fill"]["y"]["input"] == input_hash([value])


def test_a_change_of_the_same_size_is_found_at_once(filling: Filling, make: Make) -> None:
    filling.docs.insert_one({"_id": 1, "x": make(1)})
    found = filling.race(1, lambda: filling.docs.update_one({"_id": 1}, {"$set": {"x": make(2)}}))
    assert_filled_from(found, make(2))


@pytest.mark.parametrize("other", ["short", None, "y", "gone"])
def test_any_other_change_is_never_filled_from_the_old_one(
    filling: Filling, make: Make, other: Any
) -> None:
    filling.docs.insert_one({"_id": 1, "x": make(1)})
    change: Any = {"$set": {"x": other}}
    if other in ("y", "gone"):
        change = {"$set": {"y": "mine"}} if other == "y" else {"$unset": {"x": ""}}
    filling.race(1, lambda: filling.docs.update_one({"_id": 1}, change))
    [found] = filling.docs.find()
    if other == "y":
        assert (found["y"], "_fill" in found) == ("mine", False)
    elif other == "gone":
        assert "y" not in found
    else:
        assert_filled_from(found, other)


@pytest.mark.parametrize("mode", ["refill", "clear", "keep"])
def test_whoever_is_killed_between_writing_and_looking_has_a_successor(
    database: Database[Any], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filling = Filling(database, record=record_of(on_input_change=mode))
    old, new = vector(1.0), vector(2.0)
    filling.docs.insert_one({"_id": 1, "x": old})

    class Killed(BaseException):
        pass

    def killed(prepared: Prepared) -> list[Any]:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(filling.filler, "_moved", killed)
        filling.race(1, lambda: filling.docs.update_one({"_id": 1}, {"$set": {"x": new}}))
    assert filling.docs.find_one()["y"] == describe(old)  # type: ignore[index]
    filling.filler.fill_ids([1])
    [found] = filling.docs.find()
    if mode == "refill":
        assert_filled_from(found, new)
    else:
        assert found.get("y") == (describe(old) if mode == "keep" else None)


def test_a_small_input_beside_a_large_one_is_compared(database: Database[Any]) -> None:
    filling = Filling(database, lambda value: value["x"], record_of(inputs=["x", "z"]))
    filling.docs.insert_one({"_id": 1, "x": 1, "z": vector(1.0)})
    prepared = filling.filler.prepare(filling.filler.read([1]))
    filling.docs.update_one({"_id": 1}, {"$set": {"x": 2}})
    assert write(filling.docs, [update_of(fill) for _, fill in prepared.fills]).modified == 0
    assert "y" not in (filling.docs.find_one() or {})


def test_a_whole_document(database: Database[Any]) -> None:
    filling = Filling(database, lambda value: len(value["a"]), record_of(inputs=["_base"]))
    filling.docs.insert_one({"_id": 1, "a": "a" * LARGE_BYTES})
    longer = "b" * (LARGE_BYTES + 1)
    found = filling.race(1, lambda: filling.docs.update_one({"_id": 1}, {"$set": {"a": longer}}))
    assert found is not None
    assert found["y"] == LARGE_BYTES + 1


class Sizes(CommandListener):
    """How many bytes the largest command had."""

    def __init__(self) -> None:
        self.largest = 0

    def started(self, event: Any) -> None:
        self.largest = max(self.largest, len(bson.encode(event.command)))

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


def test_a_large_input_is_not_sent_back(database: Database[Any], store_uri: str) -> None:
    sizes = Sizes()
    with MongoClient[Any](store_uri, w="majority", event_listeners=[sizes]) as client:
        filling = Filling(client[database.name])
        made = enumerate(make(1) for make in LARGE.values())
        database["docs"].insert_many({"_id": number, "x": x} for number, x in made)
        filling.filler.fill_ids(range(len(LARGE)))
    assert database["docs"].count_documents({"y": {"$exists": True}}) == len(LARGE)
    assert 0 < sizes.largest < 16_000
