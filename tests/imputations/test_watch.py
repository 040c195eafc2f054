"""Fields fill themselves: from the stream, by scans, over whatever happens meanwhile."""

from typing import Any

import pytest
from bson import ObjectId
from pymongo.database import Database
from watching import Watching, until


@pytest.fixture
def watching(database: Database[Any]) -> Watching:
    return Watching(database)


def double(value: Any) -> Any:
    return value * 2


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
