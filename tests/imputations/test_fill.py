"""The conditional write: nothing of a person's is lost, nothing stale is written, in any order."""

import datetime
import math
import threading
from typing import Any

import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import BinaryVectorDtype
from filling import Filling, describe, record_of
from pymongo.database import Database

from superduper.imputations.fill import Fill, Stale, update_of, write
from superduper.imputations.provenance import fill_record, input_hash, value_hash

VALUES: dict[str, Any] = {
    "int": 1,
    "long": Int64(1),
    "double": 1.0,
    "fraction": 1.5,
    "decimal": Decimal128("1.5"),
    "nan": math.nan,
    "infinity": math.inf,
    "minus zero": -0.0,
    "true": True,
    "string": "a",
    "empty string": "",
    "dollar string": "$x",
    "nul string": "\0a",
    "bytes": b"ab",
    "binary": Binary(b"ab", 5),
    "vector": Binary.from_vector([1.0, 2.0], BinaryVectorDtype.FLOAT32),
    "date": datetime.datetime(2020, 1, 1),
    "object id": ObjectId("65a0000000000000000000aa"),
    "null": None,
    "array": [1, 2],
    "empty array": [],
    "array of null": [None],
    "array of string": ["a"],
    "array of array": [[1, 2], 3],
    "array of array only": [[1, 2]],
    "array of document": [{"a": 1}],
    "document": {"a": 1, "b": 2},
    "other order": {"b": 2, "a": 1},
    "empty document": {},
    "operator": {"$gt": 1},
    "nested operator": {"a": {"$in": [1]}},
    "literal": {"$literal": 1},
    "regex": Regex("a"),
    "code": Code("a"),
    "timestamp": Timestamp(1, 2),
    "min": MinKey(),
    "max": MaxKey(),
    "tensor": {"dtype": "uint8", "shape": [2, 2], "data": b"\1\2\3\4"},
}
IDS: list[Any] = [1, "1", ObjectId(), {"a": 1, "b": [1]}, 2.5, b"id", datetime.datetime(2020, 1, 1)]


@pytest.fixture
def filling(database: Database[Any]) -> Filling:
    return Filling(database)


def assert_filled_from(document: Any, value: Any) -> None:
    assert document["y"] == describe(value)
    record = document["_fill"]["y"]
    assert record["input"] == input_hash([value])
    assert record["value"] == value_hash(document["y"])
    assert (record["imputation"], record["version"]) == ("imputation", 1)


@pytest.mark.parametrize("name", VALUES)
def test_every_kind_of_input_is_filled(filling: Filling, name: str) -> None:
    filling.docs.insert_one({"_id": 1, "x": VALUES[name]})
    filling.filler.fill_ids([1])
    assert_filled_from(filling.docs.find_one(), VALUES[name])
    assert [value_hash(each) for each in filling.predictor.asked] == [value_hash(VALUES[name])]


@pytest.mark.parametrize("name", VALUES)
def test_an_input_that_changes_to_any_kind_is_never_filled_from_the_old_one(
    filling: Filling, name: str
) -> None:
    others = {other: value for other, value in VALUES.items() if other != name}
    others |= {
        "in an array": [VALUES[name]],
        "in an array of two": [VALUES[name], 1],
        "in arrays": [[VALUES[name]]],
    }
    filling.docs.insert_many({"_id": other, "x": VALUES[name]} for other in others)
    prepared = filling.filler.prepare(filling.filler.read(list(others)))
    for other, value in others.items():
        filling.docs.update_one({"_id": other}, [{"$set": {"x": {"$literal": value}}}])
    filling.filler.finish(prepared)
    for document in filling.docs.find():
        assert_filled_from(document, others[document["_id"]])


@pytest.mark.parametrize("value", ["a", [1], None, {"a": 1}], ids=repr)
class TestRaces:
    """Something happens between reading a document and writing its fill."""

    @pytest.fixture(autouse=True)
    def document(self, filling: Filling, value: Any) -> None:
        filling.docs.insert_one({"_id": 1, "x": value})

    @pytest.mark.parametrize("given", ["mine", None, [], describe("a")], ids=repr)
    def test_a_value_set_by_a_person_stays(self, filling: Filling, given: Any) -> None:
        after = filling.race(1, lambda: filling.docs.update_one({}, {"$set": {"y": given}}))
        assert after is not None
        assert after["y"] == given
        assert "_fill" not in after

    def test_an_input_that_goes_away_is_not_filled(self, filling: Filling, value: Any) -> None:
        after = filling.race(1, lambda: filling.docs.update_one({}, {"$unset": {"x": ""}}))
        assert after == {"_id": 1}

    def test_a_deleted_document_stays_deleted(self, filling: Filling, value: Any) -> None:
        assert filling.race(1, lambda: filling.docs.delete_one({"_id": 1})) is None
        assert filling.docs.count_documents({}) == 0

    def test_a_replaced_document_is_filled_from_what_it_is_now(
        self, filling: Filling, value: Any
    ) -> None:
        after = filling.race(1, lambda: filling.docs.replace_one({}, {"x": "new", "z": 3}))
        assert_filled_from(after, "new")
        assert after is not None and after["z"] == 3

    def test_a_replacement_with_a_value_stays(self, filling: Filling, value: Any) -> None:
        after = filling.race(1, lambda: filling.docs.replace_one({}, {"x": value, "y": "mine"}))
        assert after == {"_id": 1, "x": value, "y": "mine"}

    def test_two_fillers_fill_once(self, filling: Filling, value: Any) -> None:
        second = filling.filler_of(record_of())
        prepared = second.prepare(second.read([1]))
        after = filling.race(1, lambda: second.finish(prepared))
        assert_filled_from(after, value)
        counts = filling.counters.take()
        assert (counts["filled"], counts["superseded"]) == (1, 1)

    def test_a_value_taken_away_is_filled_again(self, filling: Filling, value: Any) -> None:
        filling.filler.fill_ids([1])
        filling.docs.update_one({}, {"$unset": {"y": ""}})
        filling.filler.fill_ids([1])
        assert_filled_from(filling.docs.find_one(), value)

    def test_other_changes_do_not_matter(self, filling: Filling, value: Any) -> None:
        after = filling.race(1, lambda: filling.docs.update_one({}, {"$set": {"z": 1}}))
        assert_filled_from(after, value)
        assert filling.counters.take()["filled"] == 1

    def test_filling_twice_changes_nothing(self, filling: Filling, value: Any) -> None:
        filling.filler.fill_ids([1])
        before = filling.docs.find_one()
        filling.filler.fill_ids([1])
        assert filling.docs.find_one() == before
        assert len(filling.predictor.asked) == 1


@pytest.mark.parametrize("value", ["a", [1], None, {"a": 1}], ids=repr)
class TestRefill:
    """Our own value is replaced when its input changes, and only while it is ours."""

    @pytest.fixture
    def filling(self, database: Database[Any], value: Any) -> Filling:
        filling = Filling(database, function=lambda x: [x, 1] if x == value else {"new": x})
        filling.docs.insert_one({"_id": 1, "x": value})
        filling.filler.fill_ids([1])
        filling.docs.update_one({}, {"$set": {"x": "other"}})
        return filling

    def test_an_outdated_value_is_replaced(self, filling: Filling) -> None:
        filling.filler.fill_ids([1])
        after: Any = filling.docs.find_one()
        assert after["y"] == {"new": "other"}
        assert after["_fill"]["y"]["input"] == input_hash(["other"])

    @pytest.mark.parametrize("given", ["mine", None, ["other", 1], [[None, 1]]], ids=repr)
    def test_a_person_who_changes_it_first_wins(self, filling: Filling, given: Any) -> None:
        after = filling.race(1, lambda: filling.docs.update_one({}, {"$set": {"y": given}}))
        assert after is not None
        assert after["y"] == given

    def test_a_person_who_put_the_value_into_an_array_wins(
        self, filling: Filling, value: Any
    ) -> None:
        given = [[value, 1]]
        after = filling.race(1, lambda: filling.docs.update_one({}, {"$set": {"y": given}}))
        assert after is not None
        assert after["y"] == given

    def test_a_person_who_takes_ownership_wins(self, filling: Filling, value: Any) -> None:
        after = filling.race(1, lambda: filling.docs.update_one({}, {"$unset": {"_fill": ""}}))
        assert after is not None
        assert after["y"] == [value, 1]

    def test_kept_if_so_declared(self, filling: Filling, value: Any) -> None:
        filling.filler_of(record_of(on_input_change="keep")).fill_ids([1])
        after: Any = filling.docs.find_one()
        assert after["y"] == [value, 1]

    def test_cleared_if_so_declared_until_asked(self, filling: Filling, value: Any) -> None:
        filler = filling.filler_of(record_of(on_input_change="clear"))
        filler.fill_ids([1])
        assert "y" not in (filling.docs.find_one() or {})
        filler.fill_ids([1])
        assert "y" not in (filling.docs.find_one() or {})
        [failure] = filling.failures().values()
        assert failure["state"] == "cleared"
        filler.retry(failure)
        after: Any = filling.docs.find_one()
        assert after["y"] == {"new": "other"}
        assert filling.failures() == {}


class TestPlaces:
    """Dotted paths, several inputs, several outputs, whole documents."""

    def test_dotted_input_and_target(self, database: Database[Any]) -> None:
        filling = Filling(database, record=record_of(["a.b"], ["c.d.e"]))
        filling.docs.insert_many([{"_id": 1, "a": {"b": 1}}, {"_id": 2, "a": {"b": [1]}, "c": {}}])
        filling.docs.insert_many([{"_id": 3, "a": [{"b": 1}]}, {"_id": 4, "a": 1}, {"_id": 5}])
        filling.filler.fill_ids([1, 2, 3, 4, 5])
        found = {each["_id"]: each for each in filling.docs.find()}
        assert found[1]["c"]["d"]["e"] == describe(1)
        assert found[2]["c"]["d"]["e"] == describe([1])
        assert found[2]["_fill"]["c"]["d"]["e"]["imputation"] == "imputation"
        assert all("c" not in found[each] for each in (3, 4, 5))

    @pytest.mark.parametrize("value", [1, [1]], ids=repr)
    def test_a_path_that_leads_into_an_array_meanwhile(
        self, database: Database[Any], value: Any
    ) -> None:
        filling = Filling(database, record=record_of(["a.b"], ["y"]))
        filling.docs.insert_one({"_id": 1, "a": {"b": value}})
        array = {"$set": {"a": [{"b": 1}]}}
        after = filling.race(1, lambda: filling.docs.update_one({}, array))
        assert after == {"_id": 1, "a": [{"b": 1}]}

    @pytest.mark.parametrize("blocking", [3, None, [], [{"d": 1}], "s"], ids=repr)
    @pytest.mark.parametrize("value", [1, [1]], ids=repr)
    def test_a_target_below_something_that_is_no_document_is_listed(
        self, database: Database[Any], value: Any, blocking: Any
    ) -> None:
        filling = Filling(database, record=record_of(["x"], ["c.d"]))
        filling.docs.insert_many([{"_id": 1, "x": value, "c": blocking}, {"_id": 2, "x": value}])
        filling.filler.fill_ids([1, 2])
        found = {each["_id"]: each for each in filling.docs.find()}
        assert found[1] == {"_id": 1, "x": value, "c": blocking}
        assert found[2]["c"]["d"] == describe(value)
        if blocking != [{"d": 1}] or value == [1]:
            assert filling.failures()[1]["error"]["type"] == "WriteError"

    @pytest.mark.parametrize("provenance", [3, None, [], "s"], ids=repr)
    @pytest.mark.parametrize("value", [1, [1]], ids=repr)
    def test_a_provenance_field_that_is_no_document_is_listed(
        self, filling: Filling, value: Any, provenance: Any
    ) -> None:
        filling.docs.insert_many(
            [{"_id": 1, "x": value, "_fill": provenance}, {"_id": 2, "x": value}]
        )
        filling.filler.fill_ids([1, 2])
        assert filling.docs.find_one({"_id": 1}) == {"_id": 1, "x": value, "_fill": provenance}
        assert_filled_from(filling.docs.find_one({"_id": 2}), value)
        assert filling.failures()[1]["error"]["type"] == "WriteError"

    def test_several_inputs(self, database: Database[Any]) -> None:
        filling = Filling(database, record=record_of(["a", "b"]))
        filling.docs.insert_many([{"_id": 1, "a": 1, "b": [2]}, {"_id": 2, "a": 1}])
        after = filling.race(1, lambda: filling.docs.update_one({"_id": 1}, {"$set": {"a": 2}}))
        assert after is not None
        assert after["y"] == describe({"a": 2, "b": [2]})
        assert "y" not in (filling.docs.find_one({"_id": 2}) or {})

    @pytest.mark.parametrize("as_list", [True, False])
    def test_several_targets(self, database: Database[Any], as_list: bool) -> None:
        def both(value: Any) -> Any:
            return [value, -value] if as_list else {"y": value, "z": -value}

        filling = Filling(database, both, record_of(["x"], ["y", "z"]))
        filling.docs.insert_many([{"_id": 1, "x": 1}, {"_id": 2, "x": 1, "z": "mine"}])
        filling.filler.fill_ids([1, 2])
        found = {each["_id"]: each for each in filling.docs.find()}
        assert (found[1]["y"], found[1]["z"]) == (1, -1)
        assert (found[2]["y"], found[2]["z"]) == (1, "mine")
        assert set(found[2]["_fill"]) == {"y"}

    def test_a_whole_document(self, database: Database[Any]) -> None:
        filling = Filling(database, lambda doc: sorted(doc), record_of(["_base"]))
        filling.docs.insert_one({"_id": 1, "a": 1})
        after = filling.race(1, lambda: filling.docs.update_one({}, {"$set": {"b": 2}}))
        assert after is not None
        assert after["y"] == ["a", "b"]

    def test_a_filter_leaves_other_documents_alone(self, database: Database[Any]) -> None:
        filling = Filling(database, record=record_of(filter={"kind": "text"}))
        filling.docs.insert_many(
            [{"_id": 1, "x": 1, "kind": "text"}, {"_id": 2, "x": 1, "kind": "image"}]
        )
        filling.filler.fill_ids([1, 2])
        assert [each["_id"] for each in filling.docs.find({"y": {"$exists": True}})] == [1]

    def test_ids_of_every_kind(self, filling: Filling) -> None:
        filling.docs.insert_many({"_id": each, "x": 1} for each in IDS)
        filling.filler.fill_ids(IDS)
        assert filling.docs.count_documents({"y": describe(1)}) == len(IDS)


class TestOutcomes:
    """What becomes of outputs that cannot or should not be written."""

    @pytest.mark.parametrize(("output", "state"), [(None, "no_value"), (math.nan, "retry")])
    def test_no_value_is_not_written(
        self, database: Database[Any], output: Any, state: str
    ) -> None:
        filling = Filling(database, lambda value: {"value": output})
        filling.docs.insert_one({"_id": 1, "x": 1})
        filling.filler.fill_ids([1])
        assert filling.docs.find_one() == {"_id": 1, "x": 1}
        failure = filling.failures()[1]
        assert failure["state"] == state and "no value" in failure["error"]["message"]

    def test_an_output_too_large_for_a_document_fails_alone(self, database: Database[Any]) -> None:
        filling = Filling(database, lambda value: "v" * value)
        sizes = {1: 1, 2: (16 << 20) + 1, 3: (16 << 20) - 100, 4: 2}
        filling.docs.insert_many({"_id": each, "x": size} for each, size in sizes.items())
        filling.filler.fill_ids([1, 2, 3, 4])
        filled = filling.docs.find({"y": {"$exists": True}}, {"_id": 1})
        assert sorted(each["_id"] for each in filled) == [1, 4]
        assert set(filling.failures()) == {2, 3}

    @pytest.mark.parametrize("confidence", [0.4, None])
    def test_an_unsure_value_is_withheld_and_not_tried_again(
        self, database: Database[Any], confidence: float | None
    ) -> None:
        def unsure(value: Any) -> Any:
            return {"value": value, "confidence": 0.9 if value > 1 else confidence}

        filling = Filling(database, unsure, record_of(min_confidence=0.5))
        filling.docs.insert_many([{"_id": 1, "x": 1}, {"_id": 2, "x": 2}])
        filling.filler.fill_ids([1, 2])
        filling.filler.fill_ids([1, 2])
        assert filling.predictor.asked == [1, 2]
        filled: Any = filling.docs.find_one({"_id": 2})
        assert filled["_fill"]["y"]["confidence"] == 0.9
        [failure] = filling.failures().values()
        assert (failure["document"], failure["state"]) == (1, "withheld")
        filling.docs.update_one({"_id": 1}, {"$set": {"x": 3}})
        filling.filler.fill_ids([1])
        assert filling.failures() == {}

    def test_a_validator_that_refuses_the_value_is_a_failure(self, database: Database[Any]) -> None:
        database.create_collection("docs", validator={"y": {"$not": {"$type": "string"}}})
        filling = Filling(database)
        filling.docs.insert_one({"_id": 1, "x": 1})
        filling.filler.fill_ids([1])
        assert filling.docs.find_one() == {"_id": 1, "x": 1}
        assert filling.failures()[1]["state"] == "retry"


def test_a_fill_for_a_document_that_is_not_there_inserts_nothing(database: Database[Any]) -> None:
    record = fill_record(imputation="i", version=1, at=1, inputs="", value=1)
    for value in (1, [1]):
        for replaces in (None, Stale(1, record)):
            fill = Fill(1, {"x": value}, "y", 1, record, replaces)
            assert write(database["docs"], [update_of(fill)]).modified == 0
    assert database["docs"].count_documents({}) == 0


def test_four_writers_at_once_against_a_restless_person(database: Database[Any]) -> None:
    filling = Filling(database)
    ids = list(range(20))
    filling.docs.insert_many({"_id": each, "x": 0} for each in ids)
    given: dict[int, str] = {}

    def person() -> None:
        for turn in range(1, 6):
            for each in ids:
                change: Any = {"$set": {"x": [turn] if turn % 2 else turn}}
                if turn == 3 and each % 4 == 0:
                    given[each] = f"mine {each}"
                    change = {"$set": {"y": given[each]}}
                filling.docs.update_one({"_id": each}, change)

    fillers = [filling.filler_of(record_of()) for _ in range(3)]
    threads = [threading.Thread(target=person)]
    threads += [
        threading.Thread(target=lambda f=f: [f.fill_ids(ids) for _ in range(10)])  # type: ignore[misc]
        for f in fillers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    filling.filler.fill_ids(ids)
    for document in filling.docs.find():
        if document["_id"] in given:
            assert document["y"] == given[document["_id"]]
        else:
            assert_filled_from(document, document["x"])
