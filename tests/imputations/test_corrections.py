"""What people make of filled values is theirs, is listed once, and is learned from."""

from typing import Any

import pytest
from filling import Filling, record_of
from pymongo.database import Database

from superduper.imputations.corrections import Corrections, Touch, prepare
from superduper.imputations.failures import key_of
from superduper.imputations.fill import Written
from superduper.imputations.fitting.documents import documents
from superduper.imputations.watching.scan import wanted


@pytest.fixture
def filling(database: Database[Any]) -> Filling:
    prepare(database)
    filling = Filling(database, lambda x: {"value": f"of {x}", "confidence": 0.75})
    filling.docs.insert_many({"_id": each, "x": each} for each in range(4))
    filling.filler.fill_ids(list(range(4)))
    return filling


@pytest.fixture
def corrections(filling: Filling) -> Corrections:
    return filling.filler.corrections


def test_changed_and_confirmed_values_are_listed(
    filling: Filling, corrections: Corrections
) -> None:
    filling.docs.update_one({"_id": 0}, {"$set": {"y": "mine"}})
    filling.docs.update_one({"_id": 1}, {"$set": {"y": "of 1"}})
    filling.filler.fill_ids([0, 1], {key_of(1): Touch(filling.now + 1000, {"y": "of 1"})})
    assert corrections.count() == 2
    rows = {row["document"]: row for row in corrections.latest(10)}
    assert {key: row["how"] for key, row in rows.items()} == {0: "changed", 1: "confirmed"}
    assert rows[0].items() >= {"field": "y", "version": 1, "confidence": 0.75}.items()
    assert rows[0]["at"] > rows[0]["filled_at"]
    assert all("_fill" not in each for each in filling.docs.find({"_id": {"$in": [0, 1]}}))
    assert filling.counters.take()["corrected"] == 2


@pytest.mark.parametrize(
    ("values", "confirmed"), [({"y": "of 1"}, 1), ({"y": "mine"}, 0), ({}, 1)], ids=repr
)
def test_only_the_value_that_is_there_is_confirmed(
    filling: Filling, corrections: Corrections, values: dict[str, Any], confirmed: int
) -> None:
    """A person's value may have been taken away, and the field filled, before we hear of it.

    That fill may have been computed before the person wrote. Without the values time must do.
    """
    filling.filler.fill_ids([1], {key_of(1): Touch(filling.now + 1000, values)})
    assert corrections.count() == confirmed
    [document] = filling.docs.find({"_id": 1})
    assert ("_fill" not in document) is bool(confirmed)


def test_a_correction_is_listed_once_though_its_worker_is_killed(
    filling: Filling, corrections: Corrections, monkeypatch: pytest.MonkeyPatch
) -> None:
    filling.docs.update_one({"_id": 0}, {"$set": {"y": "mine"}})
    with monkeypatch.context() as patch:

        def killed(_: Any, updates: list[Any]) -> Any:
            if updates:
                raise ConnectionError
            return Written()

        patch.setattr("superduper.imputations.process.write", killed)
        with pytest.raises(ConnectionError):
            filling.filler.fill_ids([0])
    assert corrections.count() == 1
    filling.filler.fill_ids([0])
    assert corrections.count() == 1 and filling.docs.find_one({"_id": 0}) == {
        **{"_id": 0, "x": 0, "y": "mine"},
    }


def test_who_takes_the_provenance_away_makes_a_value_theirs(
    filling: Filling, corrections: Corrections
) -> None:
    filling.docs.update_one({"_id": 1}, {"$unset": {"_fill.y": ""}})
    filling.docs.update_one({"_id": 1}, {"$set": {"x": "changed"}})
    filling.filler.fill_ids([1])
    assert filling.docs.find_one({"_id": 1}, {"y": 1}) == {"_id": 1, "y": "of 1"}
    assert [each["_id"] for each in documents(filling.database, record_of())] == [1]
    assert corrections.count() == 0


def test_each_fill_of_a_field_can_be_corrected(filling: Filling, corrections: Corrections) -> None:
    for value in ("mine", "mine again"):
        filling.docs.update_one({"_id": 2}, {"$set": {"y": value}})
        filling.filler.fill_ids([2])
        filling.docs.update_one({"_id": 2}, {"$unset": {"y": ""}})
        filling.filler.fill_ids([2])
    assert corrections.count() == 2
    assert [row["document"] for row in corrections.latest(1)] == [2]


def test_the_next_fit_learns_from_them_and_from_no_other_filled_value(filling: Filling) -> None:
    record = record_of()
    assert [each["_id"] for each in documents(filling.database, record)] == []
    filling.docs.update_one({"_id": 3}, {"$set": {"y": "mine"}})
    # Also before a worker has seen it.
    assert [each["_id"] for each in documents(filling.database, record)] == [3]
    filling.filler.fill_ids(list(range(4)))
    assert [each["_id"] for each in documents(filling.database, record)] == [3]


def test_a_scan_finds_them_whatever_becomes_of_a_changed_input(filling: Filling) -> None:
    found = wanted(record_of(on_input_change="keep"))
    assert filling.docs.count_documents(found) == 4
