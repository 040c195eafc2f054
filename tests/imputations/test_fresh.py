"""Readers who ask for fresh values get no other."""

from typing import Any

import pytest
from filling import Filling, record_of
from pymongo.database import Database

from superduper.commands import FindDocuments
from superduper.errors import InvalidInput
from superduper.imputations.fresh import fresh_documents
from superduper.imputations.imputation import Imputations


@pytest.fixture
def filling(database: Database[Any]) -> Filling:
    """Five filled documents: of 0 the input changed since, of 1 it is gone, 2 was corrected."""
    record = record_of(("x",), ("out.y",), watcher=True)
    Imputations(database).create(record)
    filling = Filling(database, lambda x: f"of {x}", record)
    filling.docs.insert_many({"_id": each, "x": each, "n": {"m": each}} for each in range(5))
    filling.filler.fill_ids(list(range(5)))
    filling.docs.update_one({"_id": 0}, {"$set": {"x": 7}})
    filling.docs.update_one({"_id": 1}, {"$unset": {"x": ""}})
    filling.docs.update_one({"_id": 2}, {"$set": {"out.y": "mine", "x": 7}})
    return filling


def read(filling: Filling, **query: Any) -> list[dict[str, Any]]:
    command = FindDocuments(collection="docs", fresh=True, **query)
    return list(fresh_documents(filling.database, command, 60_000))


def test_stale_values_are_left_out_with_their_provenance(filling: Filling) -> None:
    found = {each["_id"]: each for each in read(filling)}
    assert len(found) == 5
    assert found[0] == {"_id": 0, "x": 7, "n": {"m": 0}, "out": {}}
    assert found[1] == {"_id": 1, "n": {"m": 1}, "out": {}}
    assert found[2]["out"] == {"y": "mine"}
    assert found[3]["out"] == {"y": "of 3"} and "_fill" in found[3]


def test_who_is_found_or_ordered_by_a_stale_value_is_left_out(filling: Filling) -> None:
    assert [each["_id"] for each in read(filling, filter={"out.y": {"$exists": True}})] == [2, 3, 4]
    assert read(filling, filter={"$or": [{"out": {"y": "of 0"}}, {"_id": 9}]}) == []
    assert [each["_id"] for each in read(filling, sort=[("out.y", 1)])] == [2, 3, 4]
    by_x = read(filling, filter={"out.y": {"$exists": True}}, skip=1, limit=1)
    assert [each["_id"] for each in by_x] == [3]


@pytest.mark.parametrize(
    ("projection", "shown"),
    [
        (["x"], {"_id": 3, "x": 3}),
        ({"out.y": 1, "_id": 0}, {"out": {"y": "of 3"}}),
        ({"n": 1, "out": 1}, {"_id": 3, "n": {"m": 3}, "out": {"y": "of 3"}}),
        ({"_fill": 0, "n.m": 0}, {"_id": 3, "x": 3, "n": {}, "out": {"y": "of 3"}}),
        ({"_id": 1}, {"_id": 3}),
        ({"_id": 0, "_fill": 0, "n": 0}, {"x": 3, "out": {"y": "of 3"}}),
    ],
)
def test_fields_are_let_in_or_left_out_as_in_mongodb(
    filling: Filling, projection: Any, shown: dict[str, Any]
) -> None:
    assert read(filling, filter={"_id": 3}, projection=projection) == [shown]
    assert filling.docs.find_one({"_id": 3}, projection) == shown


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"projection": {"n": {"$slice": 1}}}, "0 and 1"),
        ({"projection": {"n": 1, "x": 0}}, "not both"),
        ({"filter": {"$expr": {"$eq": ["$x", 1]}}}, "expr"),
    ],
)
def test_what_cannot_be_judged_is_refused(filling: Filling, query: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        read(filling, **query)


def test_what_is_computed_from_a_stale_value_is_stale(filling: Filling) -> None:
    chained = record_of(("out.y",), ("z",), watcher=True)
    chained = type(chained)(**{**chained.__dict__, "name": "second"})
    Imputations(filling.database).create(chained)
    filling.filler_of(chained).fill_ids([0, 3])
    assert [each.get("z") for each in read(filling, filter={"_id": {"$in": [0, 3]}})] == [
        *(None, "of of 3"),
    ]
