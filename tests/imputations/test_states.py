"""Each document is in exactly one state, and the numbers add up to the collection."""

from collections import Counter
from typing import Any

import pytest
from bson import ObjectId
from filling import Filling, record_of
from pymongo.database import Database

from superduper.errors import InvalidInput
from superduper.imputations import counts
from superduper.imputations.counts import count_states
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.states import PAGE_READS, STATES, States


def model(value: Any) -> Any:
    if value == "poison":
        raise ValueError("it is poison")
    if value == "nothing":
        return {"value": None, "confidence": 0.2}
    sure = 0.2 if value == "unsure" else 0.9
    return {"value": f"of {value}", "confidence": sure, "runner_up": "the other"}


@pytest.fixture
def filling(database: Database[Any]) -> Filling:
    """A filler whose imputation is known to the database."""
    record = record_of(min_confidence=0.5, filter={"hidden": {"$ne": True}}, watcher=True)
    Imputations(database).create(record)
    return Filling(database, model, record)


def states(filling: Filling) -> dict[Any, str]:
    found = States(filling.database, filling.filler.record).walk({})
    return {each.document_id: each.state for each in found}


def one_of_each(filling: Filling) -> dict[Any, str]:
    """A collection with documents in all states, and what they should be in."""
    filling.docs.insert_many(
        [
            {"_id": "given", "x": 1, "y": "mine"},
            {"_id": "null", "x": 1, "y": None},
            {"_id": 1, "x": 1},
            {"_id": 2, "x": 2},
            {"_id": "gone", "x": 2},
            {"_id": "corrected", "x": 2},
            {"_id": "unsure", "x": "unsure"},
            {"_id": "nothing", "x": "nothing"},
            {"_id": "poison", "x": "poison"},
            {"_id": "no x"},
            {"_id": "hidden", "x": 1, "hidden": True},
        ]
    )
    ids = [each["_id"] for each in filling.docs.find()]
    filling.filler.fill_ids(ids)
    filling.docs.update_one({"_id": 2}, {"$set": {"x": 3}})
    filling.docs.update_one({"_id": "gone"}, {"$unset": {"x": ""}})
    filling.docs.update_one({"_id": "corrected"}, {"$set": {"y": "mine"}})
    filling.docs.insert_one({"_id": ObjectId("65a0000000000000000000aa"), "x": 1})
    filling.docs.insert_one({"_id": "cleared", "x": 1})
    case = filling.filler.prepare(filling.filler.read(["cleared"])).fills[0][0].case
    filling.filler.failures.clear_values([case], 0)
    return {
        "given": "given",
        "null": "given",
        "corrected": "given",
        1: "filled",
        2: "stale",
        "gone": "stale",
        "unsure": "withheld",
        "nothing": "no_value",
        "poison": "failed",
        "no x": "without_input",
        "hidden": "without_input",
        ObjectId("65a0000000000000000000aa"): "pending",
        "cleared": "withdrawn",
    }


def test_every_document_is_in_the_state_it_should_be(filling: Filling) -> None:
    wanted = one_of_each(filling)
    assert states(filling) == wanted
    found = count_states(filling.database, filling.filler.record)
    assert found == {state: list(wanted.values()).count(state) for state in STATES}
    assert sum(found.values()) == filling.docs.count_documents({})


def test_each_state_lists_its_documents_page_by_page(filling: Filling) -> None:
    wanted = one_of_each(filling)
    look = States(filling.database, filling.filler.record)
    for state in STATES:
        rows: list[dict[str, Any]] = []
        after: list[Any] = []
        while True:
            page = look.page(state, after, limit=1)
            assert len(page["documents"]) <= 1
            rows += page["documents"]
            if page["after"] is None:
                break
            after = [page["after"]["_id"]]
        assert {row["document"] for row in rows} == {k for k, v in wanted.items() if v == state}
        assert len(rows) == list(wanted.values()).count(state)
    withheld = look.page("withheld", [], 10)["documents"][0]
    assert withheld["confidence"] == 0.2 and withheld["runner_up"] == "the other"
    assert look.page("failed", [], 10)["documents"][0]["error"]["message"] == "it is poison"
    with pytest.raises(InvalidInput, match="withheld, no_value, out_of_domain, withdrawn"):
        look.page("done", [], 10)


def test_never_tried_unsure_and_nothing_are_told_apart(database: Database[Any]) -> None:
    record = record_of(min_confidence=0.5, watcher=True)
    Imputations(database).create(record)
    filling = Filling(database, model, record)
    ids = ("untried", "unsure", "nothing", "poison")
    filling.docs.insert_many({"_id": each, "x": each} for each in ids)
    filling.filler.fill_ids(["unsure", "nothing", "poison"])
    rows = {row["document"]: row for each in STATES for row in _listed(filling, each)}
    assert rows["untried"] == {"document": "untried", "state": "pending"}
    assert rows["unsure"]["state"] == "withheld" and rows["unsure"]["confidence"] == 0.2
    assert rows["poison"]["state"] == "failed"
    assert rows["poison"]["error"]["message"] == "it is poison"
    assert rows["nothing"]["state"] == "no_value" and rows["nothing"]["confidence"] == 0.2
    assert "returned None for 'y'" in rows["nothing"]["error"]["message"]
    found = count_states(database, record)
    assert [found[each] for each in ("pending", "withheld", "no_value", "failed")] == [1] * 4
    assert filling.filler.failures.due(2**60, 10)[0]["document"] == "poison", "only that is retried"
    filling.docs.update_one({"_id": "nothing"}, {"$set": {"x": "something"}})
    assert states(filling)["nothing"] == "pending", "another input may have one"


def _listed(filling: Filling, state: str) -> list[dict[str, Any]]:
    page = States(filling.database, filling.filler.record).page(state, [], 10)
    return list(page["documents"])


def test_a_failure_says_nothing_of_another_input_or_version(filling: Filling) -> None:
    one_of_each(filling)
    filling.docs.update_many({"_id": {"$in": ["poison", "unsure"]}}, {"$set": {"x": 5}})
    assert states(filling)["poison"] == states(filling)["unsure"] == "pending"
    filling.docs.update_one({"_id": "poison"}, {"$set": {"x": "poison"}})
    assert states(filling)["poison"] == "failed"


def test_what_was_computed_from_a_stale_value_is_stale(database: Database[Any]) -> None:
    records = {
        "first": _named("first", ("x",), ("y",)),
        "second": _named("second", ("y",), ("z",)),
        "third": _named("third", ("z", "w"), ("v",)),
    }
    for record in records.values():
        Imputations(database).create(record)
    filling = Filling(database, str)
    filling.docs.insert_many({"_id": each, "x": each, "w": 1} for each in range(3))
    for record in records.values():
        filling.filler_of(record).fill_ids([0, 1, 2])

    def seen(name: str) -> list[str]:
        return [each.state for each in States(database, records[name]).walk({})]

    assert seen("third") == ["filled"] * 3
    filling.docs.update_one({"_id": 0}, {"$set": {"x": 7}})
    filling.docs.update_one({"_id": 1}, {"$set": {"y": "mine"}})
    assert seen("first") == ["stale", "given", "filled"]
    assert seen("second") == ["stale", "stale", "filled"]
    assert seen("third") == ["stale", "stale", "filled"]


def _named(name: str, inputs: tuple[str, ...], writes: tuple[str, ...]) -> ImputationRecord:
    record = record_of(inputs, writes)
    return ImputationRecord(**{**record.__dict__, "name": name})


class TestCheap:
    """A large collection is not read on each call."""

    @pytest.fixture(autouse=True)
    def every_pass_is_slow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(counts, "QUICK_MS", -1)
        monkeypatch.setattr(counts, "FEW", -1)
        monkeypatch.setattr(counts, "AGE", 10**9)

    @pytest.fixture
    def passes(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        seen: Counter[str] = Counter()
        walk = States.walk

        def counted(self: States, *arguments: Any) -> Any:
            seen["passes"] += 1
            return walk(self, *arguments)

        monkeypatch.setattr(States, "walk", counted)
        return seen

    def test_the_numbers_add_up_at_any_instant(
        self, filling: Filling, passes: Counter[str]
    ) -> None:
        filling.docs.insert_many({"_id": each, "x": each} for each in range(50))
        filling.filler.fill_ids(list(range(50)))

        def found() -> dict[str, int]:
            answer = count_states(filling.database, filling.filler.record)
            assert sum(answer.values()) == filling.docs.count_documents({})
            return answer

        assert found()["filled"] == 50
        filling.docs.insert_many({"_id": each, "x": each} for each in range(50, 60))
        assert found()["pending"] == 10
        filling.docs.insert_one({"_id": "unsure", "x": "unsure"})
        filling.filler.fill_ids(["unsure"])
        assert (found()["pending"], found()["withheld"]) == (10, 1)
        assert passes["passes"] == 1
        filling.docs.delete_many({"_id": {"$lt": 15}})
        assert (found()["pending"], found()["withheld"], found()["filled"]) == (10, 1, 35)
        assert passes["passes"] == 2

    @pytest.mark.parametrize("seen", [True, False], ids=["seen", "missed"])
    def test_they_add_up_whatever_comes_during_a_pass(
        self, filling: Filling, monkeypatch: pytest.MonkeyPatch, seen: bool
    ) -> None:
        filling.docs.insert_many({"_id": each, "x": each} for each in range(20))
        walk = States.walk

        def late(self: States, *arguments: Any) -> Any:
            inserted = [{"_id": each, "x": each} for each in range(20, 25)]
            if seen:
                filling.docs.insert_many(inserted)
            found = list(walk(self, *arguments))
            if not seen:
                filling.docs.insert_many(inserted)
            return iter(found)

        monkeypatch.setattr(States, "walk", late)
        first = count_states(filling.database, filling.filler.record)
        assert first["pending"] == (25 if seen else 20)
        later = count_states(filling.database, filling.filler.record)
        assert sum(later.values()) == later["pending"] == 25

    def test_a_server_that_is_mistaken_in_the_size_is_corrected(
        self, filling: Filling, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        filling.docs.insert_many({"_id": each, "x": each} for each in range(20))
        size = counts._size
        monkeypatch.setattr(counts, "_size", lambda *those: size(*those) + 3)
        assert count_states(filling.database, filling.filler.record)["pending"] == 20
        filling.docs.insert_one({"_id": 20, "x": 1})
        assert count_states(filling.database, filling.filler.record)["pending"] == 21


def test_a_page_reads_a_bounded_number_of_documents(
    filling: Filling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("superduper.imputations.states.PAGE_READS", 7)
    assert PAGE_READS > 7
    filling.docs.insert_many({"_id": each, "x": each, "y": each} for each in range(20))
    page = States(filling.database, filling.filler.record).page("given", [], 100)
    assert [row["document"] for row in page["documents"]] == list(range(7))
    assert page["after"] == {"_id": 6}
