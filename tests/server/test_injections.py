"""The short form of `scripts/abuse inject`."""

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from starlette.testclient import TestClient

from superduper.service import Service
from superduper_server.app import build_app
from superduper_server.limits import Limits
from tests.abuse.injections import Watching, inject
from tests.server.running import BASE_URL


@pytest.fixture
def watching() -> Watching:
    return Watching()


@pytest.fixture
def watched(store_uri: str, database: Database[Any], watching: Watching) -> Iterator[Any]:
    """An app whose every command to the database is looked at."""
    with MongoClient[dict[str, Any]](store_uri, event_listeners=[watching]) as client:
        service = Service(client[database.name])
        yield build_app(service, insecure=True, limits=Limits(predict_seconds=20))
        service.close()


def test_hostile_values_get_nowhere(
    watched: Any, watching: Watching, database: Database[Any]
) -> None:
    database["docs"].insert_many({"_id": n, "x": n} for n in range(20))
    with TestClient(watched, base_url=BASE_URL, raise_server_exceptions=False) as client:
        outcome = inject(watched, client, every=5)
    assert outcome.problems == []
    assert outcome.cases > 500
    assert watching.found == []


def test_the_watcher_would_see_it(
    store_uri: str, database: Database[Any], watching: Watching
) -> None:
    with MongoClient[dict[str, Any]](store_uri, event_listeners=[watching]) as client:
        list(client[database.name]["docs"].find({"x": {"$not": {"$regex": "a"}}}))
    assert watching.found == ["find: $regex"]
