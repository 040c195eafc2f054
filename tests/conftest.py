"""Fixtures for all tests: one real embedded store per run, a fresh database per test."""

import gc
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from superduper.store.embedded import attach
from superduper.store.mongo import connect_mongo

# The files that take longest, some of them with few tests: begun first, so that in the end nobody
# has a long one left when the others are done.
LONG = (
    "behaviour/test_imputations.py",
    "training/test_processes.py",
    "imputations/test_fit_resume.py",
    "walks/test_seed_000.py",
    "imputations/test_fit_training.py",
    "imputations/test_poison.py",
    "imputations/test_watch_workers.py",
    "imputations/test_ranges.py",
    "imputations/test_watch.py",
    "chaos/test_chaos.py",
    "server/test_secrets_everywhere.py",
    "behaviour/test_progress.py",
    "imputations/test_fill.py",
    "server/test_drain.py",
    "training/test_kills.py",
    "walks/test_demo.py",
    "serving/test_choice.py",
    "store/test_embedded.py",
    "store/test_thieves.py",
    "walks/test_bad_input.py",
    "fields/test_sealing_places.py",
    "server/test_v2_clients.py",
    "serving/test_host.py",
    "server/test_hostile_models.py",
    "server/test_fuzz.py",
    "server/test_workers_ends.py",
    "store/test_mongo.py",
)


def pytest_configure() -> None:
    """Refuse to begin in an order that names files which are not there."""
    if gone := [name for name in LONG if not Path(__file__).parent.joinpath(name).is_file()]:
        raise pytest.UsageError(f"{__file__}: LONG names what is no file: {', '.join(gone)}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, the others in the order that they come in."""
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


def pytest_collection_finish() -> None:
    """What was imported stays: no collection looks at it any more, here or in a fork of this."""
    gc.collect()
    gc.freeze()


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
