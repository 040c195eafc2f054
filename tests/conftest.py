"""Fixtures for all tests: one real embedded store per run, a fresh database per test."""

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.database import Database

from superduper.store.embedded import attach
from superduper.store.mongo import connect_mongo


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Private folders for keys and training data, so that no test touches the user's own."""
    home, cache = (str(tmp_path_factory.mktemp(name)) for name in ("home", "cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERDUPER_HOME", home)
        patch.setenv("SUPERDUPER_CACHE", cache)
        yield home


@pytest.fixture(scope="session")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real store: `SUPERDUPER_TEST_URI`, else an embedded one for this run."""
    given = os.environ.get("SUPERDUPER_TEST_URI")
    if given:
        yield given
        return
    attachment = attach(tmp_path_factory.mktemp("store"))
    yield attachment.address
    attachment.close()


@pytest.fixture
def database(store_uri: str) -> Iterator[Database[dict[str, Any]]]:
    """A fresh database with a name of its own, dropped afterwards."""
    with connect_mongo(store_uri) as client:
        name = f"test_{uuid.uuid4().hex[:16]}"
        yield client[name]
        client.drop_database(name)
