"""Several imputations fill one document in one update, and each field keeps its own guard."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
from filling import Filling, describe, record_of
from pymongo.database import Database

from superduper.errors import ChildDied
from superduper.imputations.failures import key_of
from superduper.imputations.graph import Graph
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.isolate import ModelUnusable
from superduper.imputations.process import Filler
from superduper.imputations.watching import turn
from superduper.imputations.watching.events import Call
from superduper.imputations.watching.turn import Turn
from superduper.store.changes import Change, Changes

FIELDS = ("a", "b", "c")


class Joined:
    """Imputations of one collection, and turns in which they work together."""

    def __init__(self, database: Database[Any]) -> None:
        self.filling = Filling(database)
        self.docs = self.filling.docs
        self.fillers: list[Filler] = []
        self.blamed: dict[str, Exception] = {}

    def add(self, function: Any = describe, **changes: Any) -> Filler:
        """An imputation with a model that has answered before, and quickly."""
        filler = Filling(self.docs.database, function, record_of(**changes)).filler
        filler.isolation.patience.learn(1, 0.0)
        filler.counters, filler.echoes = self.filling.counters, self.filling.echoes
        self.fillers.append(filler)
        return filler

    def add_fields(self, function: Any = describe) -> None:
        """An imputation for each of three fields, all of them from `x`."""
        for name in FIELDS:
            self.add(function, writes=(name,), name=name)

    @contextlib.contextmanager
    def turn(self, *ids: Any) -> Iterator[Turn]:
        """All is read and predicted for these documents; written at the end."""
        calls = [Call(filler.record, list(ids), {}, []) for filler in self.fillers]
        imputations = Imputations(self.docs.database)
        collection = self.fillers[0].collection
        turn = Turn(imputations, collection, calls, self.blaming, Graph(()))
        for filler, call in zip(self.fillers, calls, strict=True):
            with self.blaming(filler.record):
                turn.fill(filler, call)
        yield turn
        turn.write()

    @contextlib.contextmanager
    def blaming(self, record: ImputationRecord) -> Iterator[None]:
        """Keeps errors of a model by the name of its imputation."""
        try:
            yield
        except ModelUnusable as error:
            self.blamed[record.name] = error

    def work(self, *ids: Any) -> list[Change]:
        """A turn in which nothing happens in between; the changes it made."""
        with Changes(self.docs) as changes:
            with self.turn(*ids):
                pass
            return changes.next_batch(100, 1000)

    def document(self, document_id: Any = 1) -> dict[str, Any]:
        found: dict[str, Any] | None = self.docs.find_one({"_id": document_id})
        return found or {}

    def counts(self) -> dict[str, int]:
        return self.filling.counters.take()


@pytest.fixture
def joined(database: Database[Any], monkeypatch: pytest.MonkeyPatch) -> Joined:
    monkeypatch.setattr(turn, "JOIN_SECONDS", 60.0)  # what is slow is so by its record alone
    return Joined(database)


@pytest.mark.parametrize("value", ["a", 1.5, {"k": 1}, [1, 2], None, {"$gt": 1}], ids=repr)
def test_all_fields_of_a_document_are_one_change(joined: Joined, value: Any) -> None:
    joined.add_fields()
    joined.add(lambda _: [1, 2], writes=("n.e", "n.f"), name="two fields")
    joined.docs.insert_many([{"_id": 1, "x": value}, {"_id": 2, "x": value, "b": "mine"}])
    joined.add(lambda _: "deep", writes=("n.g.h",), name="deep")
    changes = joined.work(1, 2)
    assert [change.id for change in changes] == [1, 2]
    assert all(joined.document(1)[name] == describe(value) for name in FIELDS)
    assert joined.document(1)["n"]["g"] == {"h": "deep"}
    assert set(joined.document(1)["_fill"]) == {*FIELDS, "n"}
    assert joined.document(2)["b"] == "mine"
    assert set(joined.document(2)["_fill"]) == {"a", "c", "n"}
    for change in changes:
        # An update by a pipeline may come back as the replacement of the document.
        if change.touched is None:
            assert isinstance(value, list | dict | None)
            continue
        heard = [joined.filling.echoes.heard(name, key_of(change.id)) for name in FIELDS]
        assert heard == [True, change.id == 1, True]


@pytest.mark.parametrize("value", ["a", [1]], ids=repr)
class TestRaces:
    """A person changes one document between reading and writing."""

    @pytest.fixture(autouse=True)
    def documents(self, joined: Joined, value: Any) -> None:
        joined.add_fields()
        joined.docs.insert_many([{"_id": 1, "x": value}, {"_id": 2, "x": value}])

    def test_one_field_that_a_person_fills_keeps_no_other_from_it(
        self, joined: Joined, value: Any
    ) -> None:
        with joined.turn(1, 2):
            joined.docs.update_one({"_id": 1}, {"$set": {"b": "mine"}})
        after = joined.document()
        assert (after["a"], after["b"], after["c"]) == (describe(value), "mine", describe(value))
        assert set(after["_fill"]) == {"a", "c"}
        assert set(joined.document(2)["_fill"]) == set(FIELDS)
        assert joined.counts()["filled"] == 5

    def test_an_input_that_changes_is_computed_anew(self, joined: Joined, value: Any) -> None:
        with joined.turn(1, 2):
            joined.docs.update_one({"_id": 1}, {"$set": {"x": "other"}})
        assert all(joined.document(1)[name] == describe("other") for name in FIELDS)
        assert all(joined.document(2)[name] == describe(value) for name in FIELDS)

    def test_a_deleted_document_stays_deleted(self, joined: Joined, value: Any) -> None:
        with joined.turn(1, 2):
            joined.docs.delete_one({"_id": 1})
        assert joined.document(1) == {}
        assert set(joined.document(2)["_fill"]) == set(FIELDS)
        assert joined.filling.failures() == {}


def test_a_value_that_was_taken_back_does_not_come_again(joined: Joined) -> None:
    joined.add_fields()
    joined.docs.insert_many({"_id": each, "x": 1} for each in (1, 2))
    with joined.turn(1, 2) as turn:
        cases = [work.case for work, _ in turn._parts[1][1].fills]
    joined.fillers[1].failures.take_back(cases, 0)
    joined.docs.update_many({}, {"$unset": {"b": "", "_fill.b": ""}})
    joined.docs.update_one({"_id": 2}, {"$set": {"x": 2}})
    joined.work(1, 2)
    assert "b" not in joined.document(1)
    assert joined.document(2)["b"] == describe(2)


CHANGES: list[Any] = [
    None,
    {"$set": {"a": "mine"}},
    {"$set": {"b": None}},
    {"$set": {"x": "other"}},
    {"$set": {"x": [1]}},
    {"$unset": {"x": ""}},
    {"$set": {"c": "mine", "x": "other"}},
    {"$set": {"_fill": 5}},
    "delete",
]


def test_whatever_people_do_to_many_documents_in_between(joined: Joined) -> None:
    """One batch of all kinds of documents: what did not change is right as well."""
    joined.add_fields()
    generator = random.Random(0)
    values = ["a", 1, [1, 2], None, {"k": [1]}]
    ids = list(range(60))
    joined.docs.insert_many({"_id": each, "x": generator.choice(values)} for each in ids)
    done: dict[int, Any] = {}
    with joined.turn(*ids):
        for each in ids:
            done[each] = change = generator.choice(CHANGES)
            if change == "delete":
                joined.docs.delete_one({"_id": each})
            elif change is not None:
                joined.docs.update_one({"_id": each}, change)
    for each in ids:
        after, change = joined.document(each), done[each]
        if change == "delete":
            assert after == {}
            continue
        given = (change or {}).get("$set", {})
        for name in FIELDS:
            if name in given:
                assert after[name] == given[name]
                assert name not in after.get("_fill", {})
            elif "x" not in after or given.get("_fill") is not None:
                assert name not in after
            else:
                assert after[name] == describe(after["x"])
    assert joined.counts()["filled"] == sum(
        len(each["_fill"]) for each in joined.docs.find({"_fill": {"$type": "object"}})
    )


class TestWhoGoesAlone:
    """Fills that one update cannot hold."""

    def test_what_is_computed_from_what_another_changes(self, joined: Joined) -> None:
        joined.add(writes=("y",), name="first")
        joined.add(inputs=("x", "y"), writes=("z",), name="second")
        joined.docs.insert_one({"_id": 1, "x": 1})
        joined.work(1)
        joined.work(1)
        assert joined.document()["z"] == describe({"x": 1, "y": describe(1)})
        joined.docs.update_one({}, {"$set": {"x": 2}})
        joined.work(1)
        assert joined.document()["z"] == describe({"x": 2, "y": describe(2)})

    def test_what_reads_the_whole_document(self, joined: Joined) -> None:
        joined.add(lambda document: sorted(document), inputs=("_base",), writes=("w",), name="w")
        joined.add(writes=("y",), name="y")
        joined.docs.insert_one({"_id": 1, "x": 1})
        assert len(joined.work(1)) == 2
        joined.work(1)
        assert joined.document()["w"] == ["x", "y"]

    def test_an_output_that_the_server_refuses_fails_alone(self, joined: Joined) -> None:
        large = {"value": "v" * (9 << 20)}
        joined.add(lambda _: large, writes=("a",), name="a")
        joined.add(lambda _: large, writes=("b",), name="b")
        joined.add(writes=("c",), name="c")
        joined.docs.insert_one({"_id": 1, "x": 1})
        joined.work(1)
        after = joined.document()
        assert after["c"] == describe(1)
        assert ("a" in after) != ("b" in after)
        assert len(joined.filling.failures()) == 1


class TestTrouble:
    """Models that fail, hesitate, die or are slow, beside others that do not."""

    def test_each_has_its_own_failures(self, joined: Joined) -> None:
        joined.add(lambda value: 1 // value, writes=("a",), name="a")
        unsure = {"value": "perhaps", "confidence": 0.2}
        joined.add(lambda _: unsure, writes=("b",), name="b", min_confidence=0.5)
        joined.add(writes=("c",), name="c")
        joined.docs.insert_many({"_id": each, "x": each} for each in range(3))
        joined.work(0, 1, 2)
        found = joined.docs.database["superduper.failures"].find()
        told = {(each["imputation"], each["document"]): each["state"] for each in found}
        assert told == {("docs/a", 0): "retry"} | {
            ("docs/b", each): "withheld" for each in range(3)
        }
        assert joined.docs.count_documents({"c": {"$exists": True}}) == 3
        assert joined.docs.count_documents({"a": {"$exists": True}}) == 2
        joined.docs.update_one({"_id": 0}, {"$set": {"x": 5}})
        joined.work(0)
        assert joined.document(0)["a"] == 0
        assert ("docs/a", 0) not in {
            (each["imputation"], each["document"])
            for each in joined.docs.database["superduper.failures"].find()
        }

    def test_a_model_that_dies_keeps_nobody_waiting(self, joined: Joined) -> None:
        seen: list[dict[str, Any]] = []

        def dies(component: Any, values: list[Any], timeout: float) -> Any:
            if "poison" in values:
                raise ChildDied("signal 11")
            seen.append(joined.document("fine"))
            return [{"value": "alive"} for _ in values]

        joined.add_fields()
        joined.fillers[1].isolation.predictor.predict = dies  # type: ignore[method-assign]
        joined.docs.insert_many([{"_id": "bad", "x": "poison"}, {"_id": "fine", "x": "fine"}])
        joined.work("bad", "fine")
        assert set(seen[0]["_fill"]) == {"a"}, "written before the culprit is looked for"
        assert set(joined.document("fine")["_fill"]) == set(FIELDS)
        assert set(joined.document("bad")["_fill"]) == {"a", "c"}
        [failure] = joined.filling.failures().values()
        assert (failure["imputation"], failure["attempts"]) == ("docs/b", 1)

    def test_a_model_that_cannot_run_is_blamed_alone(self, joined: Joined) -> None:
        def refuses(*_: Any) -> Any:
            raise ModelUnusable("no")

        joined.add_fields()
        joined.fillers[1].isolation.predictor.predict = refuses  # type: ignore[method-assign]
        joined.docs.insert_one({"_id": 1, "x": 1})
        joined.work(1)
        assert set(joined.blamed) == {"b"}
        assert set(joined.document()["_fill"]) == {"a", "c"}

    @pytest.mark.parametrize("how", ["is known to be slow", "was never seen"])
    def test_a_slow_model_keeps_nobody_waiting(self, joined: Joined, how: str) -> None:
        seen: list[dict[str, Any]] = []
        joined.add_fields(lambda value: seen.append(joined.document()) or describe(value))  # type: ignore[func-returns-value]
        patience = joined.fillers[2].isolation.patience
        if how == "was never seen":
            patience._paces.clear()
        else:
            patience.learn(1, 2 * turn.JOIN_SECONDS)
        joined.docs.insert_one({"_id": 1, "x": 1})
        joined.work(1)
        assert [set(each.get("_fill", ())) for each in seen] == [set(), set(), {"a", "b"}]
        assert set(joined.document()["_fill"]) == set(FIELDS)
