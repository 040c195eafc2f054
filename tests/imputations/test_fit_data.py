"""What one fit made of the documents serves the next, as long as it is of the same data."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pymongo.database import Database

from superduper.errors import InvalidInput
from superduper.imputations.fitting.data import MIB, RecordCache
from superduper.imputations.fitting.folds import fold_of_id
from tests.imputations.fitting import Classifier, Fitting, points


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SUPERDUPER_CACHE", str(folder))
    return folder


@pytest.fixture
def fitting(database: Database[Any], root: Path) -> Fitting:
    made = Fitting(database)
    made.insert(points(60))
    made.register_all()
    return made


def kept(root: Path) -> list[Path]:
    return sorted(root.iterdir())


def test_the_same_data_is_not_preprocessed_again(fitting: Fitting, root: Path) -> None:
    record = fitting.declare(max_epochs=2)
    first, second = fitting.fit(record), fitting.fit(record)
    assert (first["reopened"], second["reopened"]) == (False, True)
    for fact in ("data", "skipped", "final_hash", "metrics", "best"):
        assert second[fact] == first[fact], fact
    assert len(kept(root)) == 1, "the fits' own folders are gone"


def test_other_data_another_target_or_model_is(fitting: Fitting, root: Path) -> None:
    record = fitting.declare(max_epochs=1)
    fitting.fit(record)
    fitting.docs.update_one({"_id": 7}, {"$set": {"y": "low"}})
    fitting.docs.update_one({"_id": 8}, {"$set": {"y": "high", "other": 1}})
    assert not fitting.fit(record)["reopened"]
    fitting.docs.update_one({"_id": 8}, {"$set": {"other": 2}})
    assert fitting.fit(record)["reopened"], "a field that nobody reads is no data"
    elsewhere = "valid" if fold_of_id(8) != "valid" else "test"
    fitting.docs.update_one({"_id": 8}, {"$set": {"_fold": elsewhere}})
    assert not fitting.fit(record)["reopened"]
    fitting.register("model", "other", Classifier(("high", "low")))
    assert not fitting.fit(fitting.declare(name="two", model="other", watcher=False))["reopened"]
    assert len(kept(root)) == 4


def test_what_failed_is_told_again(fitting: Fitting) -> None:
    fitting.insert({"odd": (torch.zeros(3), "low")})
    record = fitting.declare(max_epochs=1)
    first, second = fitting.fit(record), fitting.fit(record)
    assert second["reopened"]
    assert second["skipped"] == first["skipped"]
    assert second["skipped"]["first"][0]["document"] == "odd"


def test_records_that_are_damaged_are_made_anew(fitting: Fitting, root: Path) -> None:
    record = fitting.declare(max_epochs=1)
    first = fitting.fit(record)
    [folder] = kept(root)
    file = folder / "train" / "x-0.bin"
    file.write_bytes(bytes(file.stat().st_size))
    second = fitting.fit(record)
    assert not second["reopened"]
    assert second["final_hash"] == first["final_hash"]
    assert fitting.fit(record)["reopened"]


def test_the_cache_is_private(root: Path) -> None:
    root.mkdir(mode=0o755)
    with pytest.raises(
        InvalidInput, match=f"{root} must be a folder of this user's.*SUPERDUPER_CACHE"
    ):
        RecordCache.open()
    root.rmdir()
    RecordCache.open()
    assert root.stat().st_mode & 0o777 == 0o700


def test_the_least_recently_used_records_go(root: Path, tmp_path: Path) -> None:
    root.mkdir(mode=0o700)
    cache = RecordCache(root, limit_mb=2.5)
    for number, recipe in enumerate(("a", "b", "c")):
        folder = tmp_path / recipe
        folder.mkdir()
        (folder / "x.bin").write_bytes(bytes(MIB))
        cache.keep(folder, recipe, "data")
        os.utime(root / f"{recipe}-data", (number, number))
        if recipe == "b":
            assert cache.find("a", "data")
    assert [path.name for path in kept(root)] == ["a-data", "c-data"]
    assert not cache.knows("b")


def test_what_a_killed_fit_left_goes_with_the_next(root: Path) -> None:
    cache = RecordCache.open()
    left, living = root / "fit.left", root / "fit.young"
    for folder in (left, living):
        folder.mkdir()
    os.utime(left, (0, 0))
    with cache.workplace() as mine:
        os.utime(mine, (0, 0))
        with cache.workplace() as other:
            assert kept(root) == sorted([mine, other, living])
    assert kept(root) == [living]
