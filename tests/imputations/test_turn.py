"""What imputations share of a look at the database, and what each looks at for itself."""

from typing import Any

import pytest
from filling import record_of
from pymongo.database import Database

from superduper.imputations import turn
from superduper.imputations.decide import RAW
from superduper.imputations.events import Call
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.turn import Turn

FIRST = record_of(writes=("y",))
SECOND = record_of(inputs=("z",), writes=("w",))
FILTERED = record_of(writes=("v",), filter={"x": 1})
WHOLE = record_of(inputs=("_base",), writes=("u",))


@pytest.fixture
def docs(database: Database[Any]) -> Any:
    database["docs"].insert_many({"_id": i, "x": i, "z": i, "other": i} for i in range(3))
    return database["docs"].with_options(RAW)


def call(record: ImputationRecord, *ids: int, touched: bool = False) -> Call:
    return Call(record, list(ids), {b"": 1} if touched else {}, [])


def test_documents_are_read_once_for_all_that_want_them(docs: Any) -> None:
    calls = [call(FIRST, 0, 1), call(SECOND, 0, 1)]
    shared = Turn(Imputations(docs.database), docs, calls)
    found = shared.documents(calls[0])
    assert found is not None
    assert [dict(each) for each in found] == [{"_id": i, "x": i, "z": i} for i in range(2)]
    assert shared.documents(calls[1]) is found


def test_whole_documents_are_read_for_all_if_one_needs_them(docs: Any) -> None:
    calls = [call(FIRST, 2), call(WHOLE, 2)]
    found = Turn(Imputations(docs.database), docs, calls).documents(calls[0])
    assert found is not None
    assert dict(found[0]) == {"_id": 2, "x": 2, "z": 2, "other": 2}


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
    shared = Turn(Imputations(docs.database), docs, calls)
    assert [shared.documents(each) for each in calls] == [None] * len(calls)


def test_a_look_is_shared_for_a_moment_only(docs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    imputations = Imputations(docs.database)
    imputations.create(record_of(model="model"))
    calls = [call(FIRST, 0), call(SECOND, 0)]

    def promote(version: int) -> None:
        imputations.activate(
            "docs", "imputation", version, by="test", reason="test", model_version=version
        )
        docs.update_one({"_id": 0}, {"$set": {"x": version}})

    def seen() -> tuple[int | None, int]:
        live, found = shared.live(FIRST), shared.documents(calls[1])
        assert live is not None and found is not None
        return live.active, found[0]["x"]

    promote(1)
    monkeypatch.setattr(turn, "FRESH_SECONDS", 60.0)
    shared = Turn(imputations, docs, calls)
    assert seen() == (1, 1)
    promote(2)
    assert seen() == (1, 1)
    monkeypatch.setattr(turn, "FRESH_SECONDS", -1.0)
    assert seen() == (2, 2)
    imputations.set_paused(imputations.get("docs", "imputation"), True, now=0)
    assert shared.live(FIRST) is None
