"""What imputations share of a look at the database, and what each looks at for itself."""

import contextlib
from typing import Any

import pytest
from filling import record_of
from pymongo.database import Database

from superduper.imputations import failures
from superduper.imputations.corrections import Touch
from superduper.imputations.decide import RAW
from superduper.imputations.failures import Case, Failures, key_of
from superduper.imputations.graph import Graph
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.watching import turn
from superduper.imputations.watching.events import Call
from superduper.imputations.watching.turn import Turn

FIRST = record_of(writes=("y",))
SECOND = record_of(name="second", inputs=("z",), writes=("w",))
FILTERED = record_of(name="filtered", writes=("v",), filter={"x": 1})
WHOLE = record_of(name="whole", inputs=("_base",), writes=("u",))


@pytest.fixture
def docs(database: Database[Any]) -> Any:
    database["docs"].insert_many({"_id": i, "x": i, "z": i, "other": i} for i in range(3))
    return database["docs"].with_options(RAW)


def call(record: ImputationRecord, *ids: int, touched: bool = False) -> Call:
    return Call(record, list(ids), {b"": Touch(1, {})} if touched else {}, [])


def turn_of(docs: Any, *calls: Call) -> Turn:
    return Turn(
        Imputations(docs.database), docs, calls, lambda _: contextlib.nullcontext(), Graph(())
    )


def test_documents_are_read_once_for_all_that_want_them(docs: Any) -> None:
    calls = [call(FIRST, 0, 1), call(SECOND, 0, 1)]
    shared = turn_of(docs, *calls)
    found = shared.look(calls[0])
    assert found is not None
    assert [dict(each) for each in found.documents] == [
        {"_id": i, "x": i, "z": i} for i in range(2)
    ]
    other = shared.look(calls[1])
    assert other is not None
    assert other.documents is found.documents


def test_whole_documents_are_read_for_all_if_one_needs_them(docs: Any) -> None:
    calls = [call(FIRST, 2), call(WHOLE, 2)]
    found = turn_of(docs, *calls).look(calls[0])
    assert found is not None
    assert dict(found.documents[0]) == {"_id": 2, "x": 2, "z": 2, "other": 2}


def test_each_knows_its_own_failures(docs: Any) -> None:
    failures.prepare(docs.database)
    case = Case(1, "input", 1)
    Failures(docs.database, FIRST.id).take_back([case, Case(2, "input", 1)], 0)
    Failures(docs.database, "elsewhere/imputation").take_back([case], 0)
    calls = [call(FIRST, 0, 1), call(SECOND, 0, 1)]
    shared = turn_of(docs, *calls)
    first, second = shared.look(calls[0]), shared.look(calls[1])
    assert first is not None
    assert second is not None
    assert list(first.known) == [key_of(1)]
    assert second.known == {}


@pytest.mark.parametrize(
    "calls",
    [
        [call(FIRST, 0)],
        [call(FIRST, 0), call(SECOND, 1)],
        [call(FIRST, 0), call(FILTERED, 0)],
        [call(FIRST, 0), call(SECOND, 0, touched=True)],
    ],
    ids=["alone", "of others", "chosen by a filter", "changed by a person"],
)
def test_nothing_is_shared_with_nobody(docs: Any, calls: list[Call]) -> None:
    shared = turn_of(docs, *calls)
    assert [shared.look(each) for each in calls] == [None] * len(calls)


def test_what_was_read_serves_until_it_is_written(docs: Any) -> None:
    calls = [call(FIRST, 0), call(SECOND, 0)]
    shared = turn_of(docs, *calls)

    def seen() -> Any:
        found = shared.look(calls[1])
        assert found is not None
        return found.documents[0]["x"]

    assert seen() == 0
    docs.update_one({"_id": 0}, {"$set": {"x": 7}})
    assert seen() == 0
    shared.write()
    assert seen() == 7


def test_what_is_live_is_looked_at_again_after_a_moment(
    docs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    imputations = Imputations(docs.database)
    imputations.create(record_of(model="model"))
    shared = turn_of(docs)

    def promote(version: int) -> None:
        imputations.activate(
            "docs", "imputation", version, by="test", reason="test", model_version=version
        )

    def live() -> int | None:
        record = shared.live(FIRST)
        return None if record is None else record.active

    promote(1)
    monkeypatch.setattr(turn, "FRESH_SECONDS", 60.0)
    assert live() == 1
    promote(2)
    assert live() == 1
    monkeypatch.setattr(turn, "FRESH_SECONDS", -1.0)
    assert live() == 2
    imputations.set_paused(imputations.get("docs", "imputation"), True, now=0)
    assert live() is None
