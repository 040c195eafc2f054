"""What a version wrote is taken back and put back, and nothing else."""

from dataclasses import replace
from typing import Any

import pytest
from filling import Filling, record_of
from histories import Histories
from pymongo.database import Database
from undo import undo_many

from superduper.imputations.imputation import Imputations
from superduper.imputations.provenance import is_ours
from superduper.imputations.revert import redo_version, revert_version
from superduper.imputations.states import States


@pytest.mark.parametrize("seed", range(2))
def test_random_histories_against_the_oracle(database: Database[Any], seed: int) -> None:
    histories = Histories(database, seed, documents=500)
    for _ in range(16):
        histories.step()
        histories.check()


@pytest.fixture
def filling(database: Database[Any]) -> Filling:
    filling = Filling(database, lambda x: f"of {x}")
    filling.docs.insert_many({"_id": each, "x": each} for each in range(4))
    filling.filler.fill_ids(list(range(4)))
    return filling


def test_only_what_still_stands_is_taken(filling: Filling) -> None:
    filling.docs.update_one({"_id": 0}, {"$set": {"y": "mine"}})
    filling.docs.insert_one({"_id": 9, "x": 9, "y": "mine too"})
    assert revert_version(filling.database, record_of(), 1) == 3
    assert [each.get("y") for each in filling.docs.find().sort("_id")] == [
        *("mine", None, None, None, "mine too"),
    ]
    assert [each.state for each in States(filling.database, record_of()).walk({})] == [
        *("given", "withdrawn", "withdrawn", "withdrawn", "given"),
    ]
    assert revert_version(filling.database, record_of(), 1) == 0
    assert redo_version(filling.database, record_of(), 1) == 3
    document = filling.docs.find_one({"_id": 1})
    assert document is not None and document["y"] == "of 1" and is_ours(document, "y")


def test_what_was_taken_does_not_come_again_by_itself(filling: Filling) -> None:
    revert_version(filling.database, record_of(), 1)
    filling.docs.update_one({"_id": 0}, {"$set": {"x": 7}})
    filling.filler.fill_ids(list(range(4)))
    assert [each.get("y") for each in filling.docs.find().sort("_id")] == ["of 7", None, None, None]
    filling.filler_of(replace(record_of(), active=2)).fill_ids([1])
    document = filling.docs.find_one({"_id": 1})
    assert document is not None and document["_fill"]["y"]["version"] == 2


def test_broken_off_anywhere_it_goes_on(filling: Filling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superduper.imputations.revert.BATCH", 1)

    def broken(*_: Any) -> Any:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr("superduper.imputations.revert.write", broken)
        with pytest.raises(ConnectionError):
            revert_version(filling.database, record_of(), 1)
    assert filling.docs.count_documents({"y": {"$exists": True}}) == 4
    assert revert_version(filling.database, record_of(), 1) == 4
    with monkeypatch.context() as patch:
        patch.setattr("superduper.imputations.layers.Layers.keep", broken)
        with pytest.raises(ConnectionError):
            redo_version(filling.database, record_of(), 1)
    # The documents were written already; nothing is left to be written but the marks.
    assert redo_version(filling.database, record_of(), 1) == 0
    assert filling.docs.count_documents({"y": {"$exists": True}}) == 4


def test_what_was_computed_from_it_is_stale(filling: Filling) -> None:
    chained = record_of(("y",), ("z",), name="second")
    database = filling.database
    for each in (record_of(), chained):
        Imputations(database).create(each)
    filling.filler_of(chained).fill_ids(list(range(4)))
    assert {each.state for each in States(database, chained).walk({})} == {"filled"}
    revert_version(database, record_of(), 1)
    assert {each.state for each in States(database, chained).walk({})} == {"stale"}
    redo_version(database, record_of(), 1)
    assert {each.state for each in States(database, chained).walk({})} == {"filled"}


def test_killed_over_and_over_it_ends_and_is_readable_throughout(
    database: Database[Any], store_uri: str
) -> None:
    told = undo_many(store_uri, database, count=1000, kills=1)
    assert told["revert"]["left"] == told["redo"]["left"] == 0
    assert 0 < told["revert"]["done_by_the_last"] <= 1000
    assert told["reads"] > 0 and told["wrong"] == []
