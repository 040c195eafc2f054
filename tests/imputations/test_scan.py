"""The walk over a collection: whole, in order, resumable, and given up when it is out of date."""

import threading
from typing import Any

import pytest
from bson import ObjectId
from filling import Filling, describe, record_of, scan_of
from pymongo.database import Database

from superduper.imputations.counts import count_states
from superduper.imputations.failures import key_of
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.isolate import BatchSize
from superduper.imputations.watching.fair_lock import FairLock
from superduper.imputations.watching.ranges import Ranges
from superduper.imputations.watching.scan import Scan, walk
from superduper.imputations.writing import Prepared
from superduper.store.by_id import ENOUGH

IDS: list[Any] = [*range(30), *map(str, range(30)), *(ObjectId() for _ in range(30)), {"a": 1}]

PLACES: dict[str, Any] = {
    "a document": {"other": 1},
    "an array": [{"in": 1, "further": {"in": 1}}],
    "an empty array": [],
    "a number": 5,
    "null": None,
}


@pytest.fixture
def filling(database: Database[Any]) -> Filling:
    filling = Filling(database)
    filling.docs.insert_many({"_id": each, "x": 1} for each in IDS)
    return filling


def scan_asked(filling: Filling, imputations: Imputations, size: int = 7) -> Scan:
    """What is to be scanned now."""
    return scan_of(filling, imputations, imputations.get("docs", "imputation"), size)


def test_a_scan_fills_ids_of_all_types(filling: Filling, imputations: Imputations) -> None:
    assert scan_asked(filling, imputations).lead()
    assert filling.docs.count_documents({"y": describe(1)}) == len(IDS)
    scan = imputations.get("docs", "imputation").scan
    assert (scan["state"], scan["seen"], scan["filled"]) == ("done", len(IDS), len(IDS))


@pytest.mark.parametrize("field", ["z.in", "z.further.in"])
def test_a_field_that_has_no_place_is_a_failure(database: Database[Any], field: str) -> None:
    """A filter finds it inside an array, and so would never have it tried."""
    record = record_of(writes=(field,), model="model")
    imputations = Imputations(database)
    imputations.create(record)
    imputations.activate("docs", "imputation", 1, by="test", reason="test", model_version=1)
    filling = Filling(database)
    filling.docs.insert_many({"_id": place, "x": 1, "z": z} for place, z in PLACES.items())
    record = imputations.get("docs", "imputation")
    assert scan_of(filling, imputations, record).lead()
    assert set(filling.failures()) == PLACES.keys() - {"a document"}
    counts = count_states(database, record)
    assert counts["failed"] == len(PLACES) - 1 and counts["filled"] == 1
    assert list(filling.docs.find({"_id": {"$ne": "a document"}}, {"x": 0})) == [
        {"_id": place, "z": z} for place, z in PLACES.items() if place != "a document"
    ]


@pytest.mark.parametrize("at", [0, 29, 30, 75, 90])
def test_a_walk_goes_on_from_any_place(filling: Filling, at: int) -> None:
    last = IDS[at]
    everything = [key_of(each["_id"]) for each in filling.docs.find().hint([("_id", 1)])]
    bounds = {"first": last}
    walked = [
        key_of(each["_id"])
        for batch in walk(filling.filler, record_of(), bounds, BatchSize(7))
        for each in batch
    ]
    assert walked == everything[everything.index(key_of(last)) :]


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_broken_off_anywhere_it_goes_on_where_it_was(
    filling: Filling, imputations: Imputations, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("superduper.imputations.watching.scan.CHECKPOINT_SECONDS", 0.0)
    scan = scan_asked(filling, imputations)
    left = batches

    class Killed(BaseException):
        pass

    def finish(prepared: Prepared, turn: FairLock) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return type(scan.filler).finish(scan.filler, prepared, turn)

    monkeypatch.setattr(scan.filler, "finish", finish)
    with pytest.raises(Killed):
        scan.lead()
    state = imputations.get("docs", "imputation").scan
    assert state["state"] == "running"
    assert filling.docs.count_documents({"y": {"$exists": True}}) == 7 * batches
    again = scan_asked(filling, imputations)
    assert again.lead()
    assert filling.docs.count_documents({"y": describe(1)}) == len(IDS)


@pytest.mark.parametrize("what", ["asked anew", "promoted", "paused", "deleted", "stopped"])
def test_a_scan_that_is_out_of_date_ends(
    filling: Filling, imputations: Imputations, what: str
) -> None:
    scan = scan_asked(filling, imputations)
    prepare = scan.filler.prepare

    def then(documents: Any) -> Prepared:
        match what:
            case "asked anew":
                imputations.request_scan("docs")
            case "promoted":
                imputations.activate("docs", "imputation", 2, by="", reason="", model_version=2)
            case "paused":
                imputations.set_paused(scan.record, True, now=1)
            case "deleted":
                imputations.delete(scan.record)
            case "stopped":
                scan.stop.set()  # type: ignore[attr-defined]
        return prepare(documents)

    scan.filler.prepare = then  # type: ignore[method-assign]
    assert not scan.lead()
    assert filling.docs.count_documents({"y": {"$exists": True}}) <= 7
    states = [record.scan["state"] for record in imputations.find("docs")]
    assert states in ([], ["pending"], ["running"])


def test_an_outdated_value_is_found_by_a_scan(filling: Filling, imputations: Imputations) -> None:
    assert scan_asked(filling, imputations).lead()
    filling.docs.update_many({"_id": {"$in": [0, "0"]}}, {"$set": {"x": 2}})
    filling.docs.update_one({"_id": 1}, {"$set": {"x": 2, "y": "mine"}})
    imputations.request_scan("docs")
    assert scan_asked(filling, imputations).lead()
    assert filling.docs.count_documents({"y": describe(2)}) == 2
    assert filling.docs.find_one({"_id": 1}) == {"_id": 1, "x": 2, "y": "mine"}


def test_failures_of_deleted_documents_are_forgotten(
    filling: Filling, imputations: Imputations
) -> None:
    filling.predictor.function = lambda value: 1 / 0
    assert scan_asked(filling, imputations).lead()
    filling.docs.delete_many({"_id": {"$type": "string"}})
    imputations.request_scan("docs")
    assert scan_asked(filling, imputations).lead()
    assert len(filling.failures_by_key()) == len(IDS) - 30


def test_large_documents_make_small_batches(filling: Filling) -> None:
    filling.docs.insert_many({"_id": f"large {each}", "x": "x" * (6 << 20)} for each in range(6))
    record: ImputationRecord = record_of()
    batches = list(walk(filling.filler, record, {}, BatchSize(500)))
    assert max(sum(len(each.raw) for each in batch) for batch in batches) < 24 << 20
    assert sum(map(len, batches)) == len(IDS) + 6


def test_the_place_stays_behind_what_is_being_written(
    filling: Filling, imputations: Imputations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("superduper.imputations.watching.scan.CHECKPOINT_SECONDS", 0.0)
    scan = scan_asked(filling, imputations, 10)
    prepare, finish, next_is_ready = scan.filler.prepare, scan.filler.finish, threading.Event()
    prepared_first: list[Any] = []
    written_first: list[Any] = []
    places: list[dict[str, Any]] = []

    def note_prepare(documents: Any) -> Prepared:
        prepared_first.append(documents[0]["_id"])
        if len(prepared_first) == 2:
            next_is_ready.set()
        return prepare(documents)

    def note_finish(prepared: Prepared, turn: FairLock) -> int:
        written_first.append(prepared.fills[0][0].document_id)
        if len(written_first) == 1:
            assert next_is_ready.wait(30), "the model works on the next batch meanwhile"
            places.extend(map(dict, Ranges(imputations, scan.record).all()))
        return finish(prepared, turn)

    monkeypatch.setattr(scan.filler, "prepare", note_prepare)
    monkeypatch.setattr(scan.filler, "finish", note_finish)
    assert scan.lead()
    assert len(written_first) == len(prepared_first), "each batch is written once"
    assert all(first in written_first for first in prepared_first)
    assert "last" not in places[0]
    assert filling.docs.count_documents({"y": describe(1)}) == len(IDS)
    assert imputations.get("docs", "imputation").scan["seen"] == len(IDS)


def test_a_scan_makes_the_index_for_ids_that_are_documents(
    filling: Filling, imputations: Imputations
) -> None:
    filling.docs.insert_many({"_id": {"a": n, "b": 1}, "x": 1} for n in range(ENOUGH))
    assert scan_asked(filling, imputations).lead()
    assert "_id.a_1" in filling.docs.index_information()
    assert filling.docs.count_documents({"y": describe(1)}) == len(IDS) + ENOUGH
