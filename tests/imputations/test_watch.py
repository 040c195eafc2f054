"""Fields fill themselves: from the stream, by scans, over whatever happens meanwhile."""

import logging
from typing import Any

import pytest
from bson import ObjectId
from interrupted import wire_to
from watching import Watching, double

from superduper.imputations.readiness import troubles
from superduper.store.mongo import connect_mongo
from tests.waiting import until


def triple(value: Any) -> Any:
    return value * 3


class Sure:
    """A model that is as sure as its input says."""

    def predict(self, values: Any) -> Any:
        return [float(value) for value in values]

    def confidence(self, output: Any) -> float:
        return float(output)


def test_what_is_there_and_what_comes_is_filled(watching: Watching) -> None:
    watching.docs.insert_many({"_id": each, "x": each} for each in range(5))
    watching.live(double)
    with watching.running():
        until(lambda: watching.docs.count_documents({"y": {"$exists": True}}) == 5)
        until(lambda: watching.status() == "watching")
        watching.docs.insert_one({"_id": "new", "x": 21})
        until(lambda: watching.document("new").get("y") == 42)
    assert watching.document(3)["y"] == 6
    assert watching.imputations.get("docs", "imputation").scan["filled"] == 5


def test_what_cannot_be_filled_says_why(watching: Watching) -> None:
    watching.docs.insert_one({"_id": 1, "x": 1})
    watching.live(str)
    with watching.running():
        scan = until(lambda: trouble_of(watching), 60, "the trouble")
        assert "register an instance" in scan
        assert troubles(watching.database) == [], "a model that does not load is no server's fault"
        watching.promote("imputation", watching.register(double, "imputation_model"), 2)
        until(lambda: watching.document(1).get("y") == 2)
        until(lambda: watching.status() == "watching")
    assert trouble_of(watching) is None


def trouble_of(watching: Watching) -> Any:
    return watching.imputations.get("docs", "imputation").scan.get("trouble")


def test_every_change_that_makes_work_is_noticed(watching: Watching) -> None:
    watching.live(double)
    docs = watching.docs
    docs.insert_many([{"_id": each, "z": each} for each in range(4)])
    with watching.running():
        until(lambda: watching.status() == "watching")
        docs.update_one({"_id": 0}, {"$set": {"x": 1}})
        docs.replace_one({"_id": 1}, {"x": 2})
        docs.update_one({"_id": 2}, [{"$set": {"x": "$z"}}])
        docs.update_one({"_id": 3}, {"$rename": {"z": "x"}})
        until(lambda: [watching.document(each).get("y") for each in range(4)] == [2, 4, 4, 6])
        docs.update_one({"_id": 0}, {"$unset": {"y": ""}})
        docs.replace_one({"_id": 1}, {"x": 5})
        docs.update_one({"_id": 2}, {"$unset": {"y": "", "_fill": ""}})
        docs.update_one({"_id": 3}, {"$set": {"x": 7}})
        until(lambda: [watching.document(each).get("y") for each in range(4)] == [2, 10, 4, 14])
        docs.delete_one({"_id": 0})
        docs.insert_one({"_id": 5, "x": 1, "y": "mine"})
        docs.insert_one({"_id": 6, "x": 1})
        until(lambda: watching.document(6).get("y") == 2)
    assert watching.document(5)["y"] == "mine"
    assert watching.document(0) == {}


def test_a_backfill_of_ids_of_all_types(watching: Watching) -> None:
    ids: list[Any] = [*range(600), *map(str, range(600)), *(ObjectId() for _ in range(600))]
    ids += [{"a": each, "b": [each]} for each in range(200)]
    watching.docs.insert_many({"_id": each, "x": 1} for each in ids)
    watching.docs.insert_many({"_id": f"no {each}"} for each in range(100))
    watching.docs.insert_many({"_id": f"mine {each}", "x": 1, "y": 0} for each in range(100))
    watching.live(double)
    with watching.running():
        until(lambda: watching.status() == "watching")
    assert watching.docs.count_documents({"y": 2, "_fill.y.version": 1}) == len(ids) == 2000
    assert watching.docs.count_documents({"y": 0, "_fill": {"$exists": False}}) == 100
    assert watching.imputations.get("docs", "imputation").scan["filled"] == 2000


def test_inputs_that_look_like_something_else(watching: Watching) -> None:
    inputs: list[Any] = [{"$gt": 1}, None, [], "", "$x", {}, [None], {"$literal": 1}, [["a"]]]
    watching.docs.insert_many({"_id": f"old {each}", "x": x} for each, x in enumerate(inputs))
    watching.live(repr)
    with watching.running():
        until(lambda: watching.status() == "watching")
        watching.docs.insert_many({"_id": f"new {each}", "x": x} for each, x in enumerate(inputs))
        until(lambda: watching.docs.count_documents({"y": {"$exists": True}}) == 2 * len(inputs))
    for document in watching.docs.find():
        assert document["y"] == repr(document["x"])
    assert watching.failures() == {}


def test_chained_imputations(watching: Watching) -> None:
    watching.live(double, ("x",), ("y",), name="first")
    watching.live(triple, ("y",), ("z.deep",), name="second")
    watching.docs.insert_one({"_id": 0, "x": 1})
    with watching.running():
        until(lambda: watching.document(0).get("z") == {"deep": 6})
        watching.docs.insert_one({"_id": 1, "x": 2})
        until(lambda: watching.document(1).get("z") == {"deep": 12})
        watching.docs.update_one({"_id": 1}, {"$set": {"x": 3}})
        until(lambda: watching.document(1).get("z") == {"deep": 18})
    assert set(watching.document(1)["_fill"]) == {"y", "z"}


class TestCorrections:
    """What a person writes over a filled value is the person's."""

    @pytest.mark.parametrize("given", [4, "other"], ids=["the same value", "another value"])
    def test_a_corrected_value_becomes_theirs(self, watching: Watching, given: Any) -> None:
        watching.live(double)
        with watching.running():
            watching.docs.insert_one({"_id": 0, "x": 2})
            until(lambda: watching.document(0).get("y") == 4)
            if given == 4:
                # MongoDB sends no event for an update that changes nothing.
                watching.docs.update_one({"_id": 0}, {"$set": {"y": 0}})
            watching.docs.update_one({"_id": 0}, {"$set": {"y": given}})
            until(lambda: "_fill" not in watching.document(0))
            watching.docs.update_one({"_id": 0}, {"$set": {"x": 3}})
            watching.docs.insert_one({"_id": 1, "x": 3})
            until(lambda: watching.document(1).get("y") == 6)
        assert watching.document(0) == {"_id": 0, "x": 3, "y": given}

    def test_other_provenance_stays(self, watching: Watching) -> None:
        watching.live(double, writes=("y",), name="first")
        watching.live(triple, writes=("z",), name="second")
        watching.docs.insert_one({"_id": 0, "x": 2})
        with watching.running():
            until(lambda: set(watching.document(0).get("_fill", ())) == {"y", "z"})
            watching.docs.update_one({"_id": 0}, {"$set": {"y": "mine"}})
            until(lambda: set(watching.document(0)["_fill"]) == {"z"})

    def test_a_correction_made_while_nobody_watched(self, watching: Watching) -> None:
        watching.live(double)
        watching.docs.insert_one({"_id": 0, "x": 2})
        with watching.running():
            until(lambda: watching.document(0).get("y") == 4)
        watching.docs.update_one({"_id": 0}, {"$set": {"y": "mine", "x": 3}})
        watching.database["superduper.watchers"].delete_many({})
        with watching.running():
            until(lambda: "_fill" not in watching.document(0))
        assert watching.document(0)["y"] == "mine"


class TestPolicies:
    """What the declaration says is kept to."""

    def test_a_filter(self, watching: Watching) -> None:
        watching.live(double, filter={"kind": "text"})
        watching.docs.insert_many({"_id": k, "x": 1, "kind": k} for k in ("text", "image"))
        with watching.running():
            until(lambda: watching.document("text").get("y") == 2)
            watching.docs.insert_one({"_id": "late", "x": 2})
            watching.docs.update_one({"_id": "late"}, {"$set": {"kind": "text"}})
            until(lambda: watching.document("late").get("y") == 4)
        assert "y" not in watching.document("image")

    def test_unsure_values_are_withheld_until_the_next_version(self, watching: Watching) -> None:
        watching.live(Sure(), min_confidence=0.5)
        watching.docs.insert_many({"_id": each, "x": each / 10} for each in range(10))
        with watching.running():
            until(lambda: watching.status() == "watching")
            assert watching.docs.count_documents({"y": {"$exists": True}}) == 5
            assert set(watching.failures(state="withheld")) == {0, 1, 2, 3, 4}
            watching.promote("imputation", watching.register(double, "imputation_model"), 2)
            until(lambda: watching.status() == "watching")
        assert set(watching.failures(state="withheld", version=2)) == {0, 1, 2, 3, 4}

    def test_a_changed_input_clears_if_so_declared(self, watching: Watching) -> None:
        watching.live(double, on_input_change="clear")
        watching.docs.insert_one({"_id": 0, "x": 2})
        with watching.running():
            until(lambda: watching.document(0).get("y") == 4)
            watching.docs.update_one({"_id": 0}, {"$set": {"x": 3}})
            until(lambda: "y" not in watching.document(0))
            watching.docs.insert_one({"_id": 1, "x": 2})
            until(lambda: watching.document(1).get("y") == 4)
        assert watching.document(0).get("y") is None

    def test_pause_and_resume(self, watching: Watching) -> None:
        record = watching.live(double)
        with watching.running():
            until(lambda: watching.status() == "watching")
            watching.imputations.set_paused(record, True, now=1)
            watching.docs.insert_one({"_id": 0, "x": 2})
            other = watching.live(triple, writes=("z",), name="other")
            until(lambda: watching.document(0).get("z") == 6)
            assert "y" not in watching.document(0)
            watching.imputations.set_paused(record, False, now=2)
            until(lambda: watching.document(0).get("y") == 4)
            watching.imputations.delete(other)
            watching.docs.insert_one({"_id": 1, "x": 2})
            until(lambda: watching.document(1).get("y") == 4)
        assert "z" not in watching.document(1)

    def test_a_promoted_version_fills_from_then_on(self, watching: Watching) -> None:
        watching.live(double)
        watching.docs.insert_many({"_id": each, "x": 1} for each in range(300))
        with watching.running():
            until(lambda: watching.docs.count_documents({"y": 2}) > 0)
            watching.promote("imputation", watching.register(triple, "imputation_model"), 2)
            watching.docs.insert_many({"_id": each, "x": 1} for each in range(300, 400))
            until(lambda: watching.docs.count_documents({"y": {"$exists": True}}) == 400)
            until(lambda: watching.status() == "watching")
        for document in watching.docs.find():
            assert document["y"] == {1: 2, 2: 3}[document["_fill"]["y"]["version"]]
        assert watching.docs.count_documents({"_fill.y.version": 2, "_id": {"$gte": 300}}) == 100


class TestHistoryLost:
    """Without a place in the stream everything is scanned."""

    @pytest.mark.parametrize(
        "token",
        [None, {}, {"resume": {"_data": "nonsense"}}, {"resume": 3}, "broken"],
        ids=["deleted", "empty", "corrupted", "a number", "a string"],
    )
    def test_a_token_that_is_of_no_use(self, watching: Watching, token: Any) -> None:
        watching.live(double)
        with watching.running():
            until(lambda: watching.status() == "watching")
        watching.docs.insert_one({"_id": 0, "x": 2})
        change = {"$unset": {"token": ""}} if token is None else {"$set": {"token": token}}
        watching.database["superduper.watchers"].update_one({}, change)
        with watching.running():
            until(lambda: watching.document(0).get("y") == 4)
            watching.docs.insert_one({"_id": 1, "x": 2})
            until(lambda: watching.document(1).get("y") == 4)
            until(lambda: watching.watcher()["counters"]["history_lost"] == 2)

    def test_a_collection_dropped_and_made_again(self, watching: Watching) -> None:
        watching.live(double)
        with watching.running():
            watching.docs.insert_one({"_id": 0, "x": 2})
            until(lambda: watching.document(0).get("y") == 4)
            watching.docs.drop()
            watching.docs.insert_one({"_id": 0, "x": 3})
            until(lambda: watching.document(0).get("y") == 6)
            until(lambda: watching.status() == "watching")
            watching.docs.insert_one({"_id": 1, "x": 3})
            until(lambda: watching.document(1).get("y") == 6)

    def test_the_place_moves_after_the_writes(self, watching: Watching) -> None:
        watching.live(double)
        with watching.running():
            until(lambda: watching.status() == "watching")
            before = watching.watcher()["token"]
            watching.docs.insert_one({"_id": 0, "x": 2})
            until(lambda: watching.watcher()["token"] != before)
            assert watching.document(0)["y"] == 4
            until(lambda: watching.watcher()["counters"]["filled"] == 1)


class TestTrouble:
    """Models that do not load, databases that go away: others are not held up."""

    def test_an_imputation_whose_model_is_gone_falls_behind_alone(
        self, watching: Watching, caplog: pytest.LogCaptureFixture
    ) -> None:
        watching.live(double, name="good")
        watching.live(triple, writes=("z",), name="bad")
        component = watching.registry.get("docs", "model", "bad_model")
        components = watching.database["superduper.components"]
        sealed = components.find_one_and_delete({"_id": component.id})
        with watching.running(), caplog.at_level(logging.CRITICAL):
            watching.docs.insert_one({"_id": 0, "x": 2})
            until(lambda: watching.document(0).get("y") == 4)
            until(lambda: watching.watcher().get("counters", {}).get("fell_behind", 0) > 0)
            watching.docs.insert_one({"_id": 1, "x": 2})
            until(lambda: watching.document(1).get("y") == 4)
            assert sealed is not None
            components.insert_one(sealed)
            until(lambda: [watching.document(each).get("z") for each in (0, 1)] == [6, 6])

    def test_a_filter_that_the_server_refuses(self, watching: Watching) -> None:
        watching.live(double, name="good")
        watching.live(triple, writes=("z",), name="bad", filter={"x": {"$nonsense": 1}})
        with watching.running():
            watching.docs.insert_one({"_id": 0, "x": 2})
            until(lambda: watching.document(0).get("y") == 4)
            watching.docs.insert_one({"_id": 1, "x": 2})
            until(lambda: watching.document(1).get("y") == 4)

    def test_the_database_goes_away_again_and_again(
        self, watching: Watching, caplog: pytest.LogCaptureFixture
    ) -> None:
        host, port = watching.database.client.address or ("", 0)
        watching.live(double)
        watching.docs.insert_many({"_id": each, "x": 1} for each in range(1000))
        with wire_to(host, port) as wire, connect_mongo(wire.address) as client:
            behind = Watching(client[watching.database.name])
            with caplog.at_level(logging.CRITICAL), behind.running():
                for turn in range(3):
                    least = 1 + 200 * turn
                    until(lambda n=least: filled(watching) >= n)  # type: ignore[misc]
                    wire.cut()
                    watching.docs.insert_one({"_id": f"cut {turn}", "x": 1})
                    wire.mend()
                until(lambda: filled(watching) == 1003)


def filled(watching: Watching) -> int:
    return watching.docs.count_documents({"y": {"$exists": True}})
