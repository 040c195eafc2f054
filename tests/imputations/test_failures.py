"""Documents that cannot be filled cost little, block nobody, and are listed."""

from dataclasses import replace
from typing import Any

import pytest
from bson import ObjectId
from filling import Filling, describe, record_of
from pymongo.database import Database

from superduper.errors import AlreadyExists
from superduper.imputations import failures
from superduper.imputations.failures import Case, Failures, key_of
from superduper.imputations.imputation import Imputations
from superduper.imputations.provenance import input_hash

IDS: list[Any] = [1, "1", ObjectId("0123456789abcdef01234567"), {"a": 1}, None, 2.5]


@pytest.fixture(params=[True, False], ids=["indexed", "not indexed"])
def kept(database: Database[Any], request: pytest.FixtureRequest) -> Failures:
    if request.param:
        failures.prepare(database)
    return Failures(database, "docs/imputation")


ERROR = {"type": "ValueError", "message": "no", "traceback": "..."}


class TestRecords:
    """What is kept of a failure."""

    @pytest.mark.parametrize("document_id", IDS, ids=repr)
    def test_attempts_are_counted_for_one_input_and_version(
        self, kept: Failures, document_id: Any
    ) -> None:
        case = Case(document_id, "a", 1)
        assert [kept.begin(case, 0) for _ in range(3)] == [1, 2, 3]
        assert kept.begin(Case(document_id, "b", 1), 0) == 1
        assert kept.begin(Case(document_id, "b", 1), 0) == 2
        assert kept.begin(Case(document_id, "b", 2), 0) == 1
        [record] = kept.known(IDS).values()
        assert record["document"] == document_id
        assert record["_id"] == {"imputation": "docs/imputation", "document": document_id}
        kept.forget([document_id])
        assert kept.known(IDS) == {}

    def test_an_error_waits_longer_each_time_and_then_is_dead(self, kept: Failures) -> None:
        case = Case(1, "a", 1)
        waits = []
        for attempts in (1, 2, 3):
            assert kept.begin(case, 0) == attempts
            kept.fail([(case, ERROR)], attempts, 0)
            [record] = kept.known([1]).values()
            waits.append((record["state"], record["next_at"]))
        assert waits == [("retry", 2000), ("retry", 4000), ("dead", 8000)]
        assert kept.known([1])[key_of(1)]["error"] == ERROR

    def test_what_is_due(self, kept: Failures) -> None:
        kept.fail([(Case(each, "a", 1), ERROR) for each in IDS], 1, 0)
        kept.fail([(Case("dead", "a", 1), ERROR)], 3, 0)
        kept.withhold([(Case("unsure", "a", 1), {"confidence": 0.2})], 0)
        kept.begin(Case("running", "a", 1), 0)
        assert kept.due(1999, 10) == []
        assert {key_of(each["document"]) for each in kept.due(2000, 10)} == set(map(key_of, IDS))
        kept.release_running()
        assert kept.due(1999, 10)[0]["document"] == "running"
        assert len(kept.due(2000, 3)) == 3

    def test_an_attempt_of_a_worker_that_died_is_due_when_it_should_be_over(
        self, kept: Failures, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUPERDUPER_PREDICT_TIMEOUT", "3")
        kept.begin(Case(1, "a", 1), 0)
        assert kept.due(10_999, 9) == []
        assert [each["document"] for each in kept.due(11_000, 9)] == [1]
        assert kept.begin(Case(1, "a", 1), 11_000) == 2, "it was an attempt all the same"

    def test_imputations_do_not_see_each_other(
        self, kept: Failures, database: Database[Any]
    ) -> None:
        other = Failures(database, "docs/other")
        kept.fail([(Case(1, "a", 1), ERROR)], 1, 0)
        other.fail([(Case(1, "a", 1), ERROR)], 1, 0)
        kept.forget([1])
        assert kept.known([1]) == {}
        assert len(other.known([1])) == 1

    def test_listing_leaves_out_deleted_documents(
        self, kept: Failures, database: Database[Any]
    ) -> None:
        database["docs"].insert_many([{"_id": 1}, {"_id": {"a": 1}}])
        kept.fail([(Case(each, "a", 1), ERROR) for each in (1, 2, {"a": 1})], 1, 0)
        listed = failures.listing(database, "docs/imputation")
        assert [each["document"] for each in listed] == [1, {"a": 1}]
        assert listed[0]["error"]["message"] == "no"
        assert len(failures.listing(database, "docs/imputation", 1)) == 1
        kept.forget_deleted(database["docs"])
        assert len(kept.known([1, 2, {"a": 1}])) == 2

    def test_retry_begins_anew(self, kept: Failures, database: Database[Any]) -> None:
        kept.fail([(Case(1, "a", 1), ERROR)], 3, 0)
        kept.clear_values([Case(2, "a", 1)], 0)
        assert failures.retry(database, "docs/imputation") == 2
        assert [each["attempts"] for each in kept.due(0, 9)] == [0, 0]
        assert kept.begin(Case(1, "a", 1), 0) == 1


class TestRounds:
    """A filler and its failures, with a model that is a function of the test."""

    def test_an_error_is_kept_and_not_tried_until_it_is_due(self, database: Database[Any]) -> None:
        filling = Filling(database, lambda value: 1 / value)
        filling.docs.insert_many([{"_id": 1, "x": 0}, {"_id": 2, "x": 1}])
        for _ in range(3):
            filling.filler.fill_ids([1, 2])
        assert filling.predictor.asked == [0, 1]
        assert filling.failures()[1]["error"]["type"] == "ZeroDivisionError"
        for attempts in (2, 3):
            filling.filler.retry(filling.failures()[1])
            assert filling.failures()[1]["attempts"] == attempts
        assert filling.failures()[1]["state"] == "dead"
        filling.filler.fill_ids([1, 2])
        assert filling.predictor.asked == [0, 1, 0, 0]

    @pytest.mark.parametrize(
        "change", [{"$set": {"x": 2}}, {"$set": {"y": 1}}, {"$unset": {"x": 1}}]
    )
    def test_a_changed_document_is_no_failure(self, database: Database[Any], change: Any) -> None:
        filling = Filling(database, lambda value: 1 / value)
        filling.docs.insert_one({"_id": 1, "x": 0})
        filling.filler.fill_ids([1])
        filling.docs.update_one({}, change)
        filling.filler.fill_ids([1])
        assert filling.failures() == {}

    @pytest.mark.parametrize("filled_by", ["retry", "look"])
    def test_a_record_is_not_dropped_under_who_relies_on_it(
        self, database: Database[Any], filled_by: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A person takes a value away just before the record of its failure is dropped."""
        filling = Filling(database)
        filling.docs.insert_one({"_id": 1, "x": 5})
        case = Case(1, input_hash([5]), 1)
        filling.filler.failures.begin(case, 0)
        other = filling.filler_of(filling.filler.record)
        forget, passed = filling.filler.failures.forget, list[Any]()

        def late(document_ids: Any) -> None:
            if document_ids and not passed:
                filling.docs.update_one({}, {"$unset": {"y": "", "_fill": ""}})
                other.fill_ids([1])
                passed.append(filling.docs.find_one())
            forget(document_ids)

        monkeypatch.setattr(filling.filler.failures, "forget", late)
        if filled_by == "retry":
            filling.filler.retry(filling.failures()[1])
        else:  # somebody else filled it, and this one only finds that nothing is to be done
            filling.docs.update_one({}, {"$set": {"y": "theirs"}})
            filling.filler.fill_ids([1])
        assert passed == [{"_id": 1, "x": 5}], "it was left to the record"
        assert (filling.docs.find_one() or {}).get("y") == describe(5)
        assert filling.failures() == {}

    def test_a_deleted_document_is_no_failure(self, database: Database[Any]) -> None:
        filling = Filling(database, lambda value: 1 / value)
        filling.docs.insert_one({"_id": 1, "x": 0})
        filling.filler.fill_ids([1])
        filling.docs.delete_one({})
        filling.filler.retry(filling.failures()[1])
        assert filling.failures() == {}

    def test_another_version_tries_anew(self, database: Database[Any]) -> None:
        filling = Filling(database, lambda value: 1 / value)
        filling.docs.insert_one({"_id": 1, "x": 0})
        filling.filler.fill_ids([1])
        record = record_of()
        object.__setattr__(record, "active", 2)
        filling.predictor.function = lambda value: "fine"
        filling.filler_of(record).fill_ids([1])
        after: Any = filling.docs.find_one()
        assert after["_fill"]["y"]["version"] == 2
        assert filling.failures() == {}

    def test_a_worker_that_ends_in_every_attempt(self, database: Database[Any]) -> None:
        filling = Filling(database)
        filling.docs.insert_one({"_id": 1, "x": 0})
        [work] = filling.filler._sort(filling.filler._look([1]))[0].values()
        for _ in range(3):
            filling.filler.failures.begin(work.case, 0)
        filling.filler.retry(filling.failures()[1])
        assert filling.predictor.asked == []
        assert filling.failures()[1]["state"] == "dead"
        assert filling.failures()[1]["error"]["type"] == "WorkerDied"


def test_where_every_attempt_took_its_worker_along_three_are_told(
    database: Database[Any],
) -> None:
    filling = Filling(database)
    filling.docs.insert_one({"_id": 1, "x": 1})
    case = Case(1, input_hash([1]), 1)
    failures_of = filling.filler.failures
    assert [failures_of.begin(case, filling.now) for _ in range(3)] == [1, 2, 3]
    [failure] = failures_of.known([1]).values()
    filling.filler.retry(failure)
    [failure] = failures_of.known([1]).values()
    assert (failure["attempts"], failure["state"]) == (3, "dead")
    assert failure["error"]["type"] == "WorkerDied"
    assert filling.docs.find_one({"_id": 1}) == {"_id": 1, "x": 1}


def test_of_two_workers_at_one_document_the_later_attempt_counts(database: Database[Any]) -> None:
    """As after a change of leaders, while a helper still waits for its own attempt."""
    record, case = Failures(database, "docs/imputation"), Case("a", "hash", 1)
    assert (record.begin(case, 1), record.begin(case, 2)) == (1, 2)
    record.fail([(case, {"message": "second"})], 2, 3)
    record.fail([(case, {"message": "first"})], 1, 4)
    assert record.begin(case, 5) == 3
    record.fail([(case, {"message": "third"})], 3, 6)
    record.fail([(case, {"message": "late"})], 1, 7)
    [found] = record.known(["a"]).values()
    assert (found["attempts"], found["state"]) == (3, "dead")
    record.fail([(Case("a", "other input", 1), {})], 1, 8)
    [found] = record.known(["a"]).values()
    assert (found["attempts"], found["state"]) == (1, "retry")


def test_what_killed_one_version_is_tried_by_itself_with_the_next(database: Database[Any]) -> None:
    """Or each new version would begin with a batch of nothing but culprits."""
    first = Filling(database)
    first.docs.insert_many([{"_id": each, "x": each} for each in range(3)])
    case = Case(1, input_hash([1]), 1)
    killed = {"type": "ChildDied", "message": "signal 11", "traceback": ""}
    first.filler.failures.fail([(case, killed)], 3, 0)
    second = Filling(database, record=replace(record_of(), active=2))
    second.filler.fill_ids([0, 1, 2])
    assert second.predictor.asked == [0, 2]
    [failure] = second.failures().values()
    assert (failure["state"], failure["attempts"], failure["version"]) == ("retry", 0, 2)
    [due] = second.filler.failures.due(0, 10)
    second.filler.retry(due)
    assert second.failures() == {}
    assert second.docs.count_documents({"y": {"$exists": True}, "_fill.y.version": 2}) == 3


def test_what_was_noted_after_a_deletion_is_forgotten(database: Database[Any]) -> None:
    """Or a note that is for every version would keep the next imputation from filling."""
    imputations = Imputations(database)
    record = imputations.create(record_of(model="model"))
    imputations.delete(record)
    kept = Failures(database, record.id)
    kept.clear_values([Case("late", "its input", 1)], 0)
    imputations.create(record)
    assert kept.known(["late"]) == {}
    kept.clear_values([Case("of this one", "its input", 1)], 0)
    with pytest.raises(AlreadyExists):
        imputations.create(record)
    assert len(kept.known(["of this one"])) == 1
