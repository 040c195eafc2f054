"""Retries of a collection are made by all its workers, each attempt by one of them."""

import time
from typing import Any

import pytest
from filling import Filling, describe
from pymongo.database import Database
from watching import Watching

from superduper.imputations.process import Filler
from superduper.imputations.watching.watch import Backoff
from tests.waiting import until

POISON = 8


def refuse(value: Any) -> Any:
    raise ValueError(f"not {value}")


def refuse_slowly(value: Any) -> Any:
    time.sleep(0.3)
    raise ValueError(f"not {value}")


def test_of_two_workers_at_the_same_retry_one_makes_it(database: Database[Any]) -> None:
    filling = Filling(database, refuse)
    filling.docs.insert_one({"_id": 1, "x": 1})
    filling.filler.fill_ids([1])
    due = filling.failures()[1]
    for _ in range(2):
        filling.filler.retry(due)
    assert filling.predictor.asked == [1, 1]
    assert filling.failures()[1]["attempts"] == 2
    filling.predictor.function = describe
    filling.filler.retry(filling.failures()[1])
    assert filling.docs.find_one()["y"] == describe(1) and filling.failures() == {}


def test_a_worker_that_helps_makes_retries_too(
    database: Database[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    makers: set[int] = set()
    alone = Filler.retry

    def noted(self: Filler, failure: Any) -> None:
        makers.add(id(self))
        alone(self, failure)

    monkeypatch.setattr(Filler, "retry", noted)
    watching = Watching(database)
    watching.docs.insert_many({"_id": each, "x": each} for each in range(POISON))
    watching.live(refuse_slowly)
    with watching.running(), watching.running():
        until(lambda: len(watching.failures(state="dead")) == POISON, 120)
        assert len(makers) == 2
        assert {each["attempts"] for each in watching.failures().values()} == {3}
        until(lambda: watching.watcher()["counters"].get("failed") == 3 * POISON)


def test_after_a_while_without_trouble_the_next_pause_is_short_again() -> None:
    backoff = Backoff()
    assert [backoff.seconds_after(1.0) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert [backoff.seconds_after(lasted) for lasted in (31.0, 0.0)] == [1, 2]
