"""Ids that are documents: what the stream tells of is found without a look at everything."""

from typing import Any

import pytest
from pymongo.database import Database
from watching import Watching

from superduper.store.by_id import ENOUGH
from tests.waiting import until

INDEX = "_id.a_1"


@pytest.fixture
def watching(database: Database[Any]) -> Watching:
    return Watching(database)


def negated(value: int) -> int:
    return -value


def test_there_is_an_index_for_them_also_after_a_drop(watching: Watching) -> None:
    watching.live(negated)
    with watching.running():
        until(lambda: watching.status() == "watching")
        _insert(watching)
        until(lambda: INDEX in watching.docs.index_information())
        until(lambda: _is_filled(watching))
        watching.docs.drop()
        _insert(watching)
        until(lambda: INDEX in watching.docs.index_information())
        until(lambda: _is_filled(watching))


def _insert(watching: Watching) -> None:
    watching.docs.insert_many({"_id": {"a": n, "b": "same"}, "x": n} for n in range(ENOUGH))


def _is_filled(watching: Watching) -> bool:
    return all(watching.document({"a": n, "b": "same"}).get("y") == -n for n in range(ENOUGH))
