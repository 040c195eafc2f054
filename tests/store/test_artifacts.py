"""Blobs are complete before their record is there, kept once, and not collected while in use."""

import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gridfs.synchronous.grid_file as grid_file
import pytest
import torch
from bson.objectid import ObjectId
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database
from safetensors.torch import save

from superduper.errors import ArtifactRejected, InvalidInput, NotFound, NotReady, TooLarge
from superduper.fields.sealing import Sealed, seal
from superduper.store import artifacts, garbage
from superduper.store.artifacts import ArtifactStore
from superduper.store.registry import Registry
from superduper.store.signing import Keyring

PLACE = {"collection": "docs", "kind": "function", "name": "f", "author": "me"}
OTHER = {**PLACE, "name": "g"}


@pytest.fixture
def store(database: Database[Any], tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(database, Keyring.open(tmp_path))


@pytest.fixture
def files(database: Database[Any]) -> Collection[dict[str, Any]]:
    return database["superduper.artifacts.files"]


@pytest.fixture
def chunks(database: Database[Any]) -> Collection[dict[str, Any]]:
    return database["superduper.artifacts.chunks"]


@pytest.fixture
def records(database: Database[Any]) -> Collection[dict[str, Any]]:
    return database["superduper.artifacts"]


def sealed(number: int = 0) -> Sealed:
    return seal({"object": lambda x: x + number})


def test_a_record_says_all_there_is_to_know(store: ArtifactStore) -> None:
    made = store.fetch(store.put_code(sealed(), **PLACE))
    assert made.record | {"created_at": 0, "sha256": "", "size": 0} == {
        "schema": "superduper.artifact/1",
        "purpose": "code",
        "collection": "docs",
        "kind": "function",
        "name": "f",
        "sha256": "",
        "size": 0,
        "format": "dill",
        "python_tag": sys.implementation.cache_tag,
        "magic": sealed().magic,
        "dill_version": sealed().dill_version,
        "torch_version": str(torch.__version__),
        "created_by": "me",
        "created_at": 0,
    }
    assert made.record["size"] == len(made.blob)


def test_the_same_content_is_kept_once(
    store: ArtifactStore, files: Collection[Any], records: Collection[Any]
) -> None:
    first = store.put_code(sealed(), **PLACE)
    assert store.put_code(sealed(), **PLACE) == first
    second = store.put_code(sealed(), **OTHER)
    assert second != first, "a record is for one name"
    assert files.count_documents({}) == 1 and records.count_documents({}) == 2
    assert store.fetch(first).blob == store.fetch(second).blob


def test_many_who_keep_the_same_at_once_keep_one_record(
    store: ArtifactStore, records: Collection[Any]
) -> None:
    artifact = store.sign_code(sealed(), **PLACE)
    threads = [threading.Thread(target=store.keep, args=(artifact,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records.count_documents({}) == 1
    assert store.fetch(artifact.id).blob == artifact.blob


def test_weights_are_safetensors_and_nothing_else(store: ArtifactStore) -> None:
    blob = save({"w": torch.ones(2)})
    place = {"collection": "docs", "name": "m", "author": "me"}
    made = store.fetch(store.put_weights(blob, **place))
    assert made.blob == blob and made.record["purpose"] == "weights"
    header = b"[" * 50 + b"]" * 50
    for wrong in (
        b"",
        b"\x80\x04N.",
        blob[:6],
        struct.pack("<Q", 2**62) + blob,
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", len(header)) + header,
    ):
        with pytest.raises(InvalidInput, match="not a safetensors file"):
            store.put_weights(wrong, **place)


def test_what_is_too_large_is_refused(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MAX_BYTES", 100)
    with pytest.raises(TooLarge, match="function 'f' takes 0 MiB"):
        store.put_code(sealed(), **PLACE)


def test_large_blobs_come_back_whole(store: ArtifactStore, chunks: Collection[Any]) -> None:
    blob = save({"w": torch.arange(1_000_000, dtype=torch.float32)})
    made = store.put_weights(blob, collection="docs", name="m", author="me")
    assert chunks.count_documents({}) == 4
    assert store.fetch(made).blob == blob


# Damage ---------------------------------------------------------------------------------------


def test_what_is_missing_or_damaged_is_said(
    store: ArtifactStore, files: Collection[Any], chunks: Collection[Any]
) -> None:
    with pytest.raises(NotFound, match="there is no artifact"):
        store.fetch("0" * 64)
    made = store.put_code(sealed(), **PLACE)
    [chunk] = chunks.find()
    chunks.update_one({}, {"$set": {"data": chunk["data"][:-1] + b"!"}})
    with pytest.raises(ArtifactRejected, match="not those that were signed"):
        store.fetch(made)
    chunks.delete_many({})
    with pytest.raises(ArtifactRejected, match="its stored bytes are damaged"):
        store.fetch(made)
    files.update_one({}, {"$set": {"length": 2**40}})
    with pytest.raises(ArtifactRejected, match="1099511627776 bytes are stored"):
        store.fetch(made)
    files.delete_many({})
    with pytest.raises(ArtifactRejected, match="its stored bytes are gone"):
        store.fetch(made)


def test_a_failed_upload_leaves_nothing_behind(
    store: ArtifactStore,
    files: Collection[Any],
    chunks: Collection[Any],
    records: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: Any) -> None:
        raise OSError("no space left on device")

    blob = save({"w": torch.ones(1_000_000)})
    monkeypatch.setattr(grid_file.GridIn, "close", full)
    with pytest.raises(OSError, match="no space"):
        store.put_weights(blob, collection="docs", name="m", author="me")
    assert [each.count_documents({}) for each in (files, chunks, records)] == [0, 0, 0]


def test_what_the_database_did_not_keep_gets_no_record(
    store: ArtifactStore, records: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_download", lambda blob_id: b"something else")
    with pytest.raises(ArtifactRejected, match="did not keep what was written"):
        store.put_code(sealed(), **PLACE)
    assert records.count_documents({}) == 0


KILLED = """
import sys, os
from superduper.store import artifacts
from superduper.store.mongo import connect_mongo
from superduper.store.signing import Keyring
store = artifacts.ArtifactStore(connect_mongo(sys.argv[1])[sys.argv[2]], Keyring.open())
keep = store._records.insert_one
class Records:
    def __getattr__(self, name):
        return os._exit(9) if name == "insert_one" else getattr(keep.__self__, name)
store._records = Records()
import struct
header = b'{"w":{"dtype":"U8","shape":[3000000],"data_offsets":[0,3000000]}}'
blob = struct.pack("<Q", len(header)) + header + bytes(3000000)
store.put_weights(blob, collection="docs", name="m", author="me")
"""


def test_a_kill_before_the_record_leaves_garbage_only(
    store: ArtifactStore,
    store_uri: str,
    database: Database[Any],
    files: Collection[Any],
    chunks: Collection[Any],
    records: Collection[Any],
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, store_uri, database.name])
    assert done.returncode == 9
    assert files.count_documents({}) == 1 and records.count_documents({}) == 0
    assert store.collect_garbage() == 0, "it is young"
    assert store.collect_garbage(min_age_hours=-1) == 1
    assert files.count_documents({}) == chunks.count_documents({}) == 0


# Garbage --------------------------------------------------------------------------------------


@pytest.fixture
def registry(database: Database[Any], store: ArtifactStore) -> Registry:
    return Registry(database, store)


def register(registry: Registry, name: str, number: int) -> Any:
    return registry.register("docs", "function", name, sealed(number), author="me")


def test_what_is_used_is_kept_and_what_is_not_goes(
    store: ArtifactStore,
    registry: Registry,
    files: Collection[Any],
    chunks: Collection[Any],
    records: Collection[Any],
) -> None:
    kept = register(registry, "f", 1)
    register(registry, "g", 1)
    register(registry, "g", 2)
    chunks.insert_one({"files_id": ObjectId(), "n": 0, "data": b"torn"})
    assert store.collect_garbage(min_age_hours=-1) == 1
    assert (files.count_documents({}), records.count_documents({})) == (2, 3)
    registry.delete("docs", "function", "g")
    assert store.collect_garbage() == 0 and records.count_documents({}) == 3
    assert store.collect_garbage(min_age_hours=-1) == 1
    assert (files.count_documents({}), records.count_documents({})) == (1, 1)
    assert store.fetch(kept.artifact).blob


def test_a_registration_during_collection_loses_nothing(
    database: Database[Any],
    store: ArtifactStore,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whenever in a collection the same content is registered again, it can be loaded after."""
    moments = 0
    while True:
        register(registry, "f", 1)
        registry.delete("docs", "function", "f")
        reached = collect_with_registration_at(moments, store, registry, monkeypatch)
        found = registry.get("docs", "function", "f") if reached else None
        if found is None:
            break
        assert store.fetch(found.artifact).blob, f"lost at moment {moments}"
        assert store.collect_garbage(min_age_hours=-1) == 0
        registry.delete("docs", "function", "f")
        assert store.collect_garbage(min_age_hours=-1) == 1
        moments += 1
    assert moments >= 8


def collect_with_registration_at(
    moment: int, store: ArtifactStore, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Collect, and register between two of its operations; False if it has fewer of them."""
    count, registered = 0, False

    def then(given: Any) -> Any:
        def method(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal count, registered
            if count == moment and not registered:
                registered = True
                register(registry, "f", 1)
            if not registered:
                count += 1
            return given(self, *arguments, **options)

        return method

    with monkeypatch.context() as patched:
        for name in ("find", "find_one", "update_one", "delete_one", "delete_many"):
            patched.setattr(Collection, name, then(getattr(Collection, name)))
        store.collect_garbage(min_age_hours=-1)
    return registered


def test_a_mark_left_by_a_killed_collection_does_no_harm(
    store: ArtifactStore, registry: Registry, records: Collection[Any], files: Collection[Any]
) -> None:
    made = register(registry, "f", 1)
    for documents in (records, files):
        documents.update_many({}, {"$set": {garbage.MARK: True}})
    assert store.collect_garbage(min_age_hours=-1) == 0
    assert store.fetch(made.artifact).blob
    assert register(registry, "g", 1).version == 1


def test_a_database_that_is_gone_is_said(tmp_path: Path) -> None:
    nowhere: MongoClient[dict[str, Any]]
    with MongoClient("mongodb://127.0.0.1:9", serverSelectionTimeoutMS=100) as nowhere:
        store = ArtifactStore(nowhere["x"], Keyring.open(tmp_path))
        with pytest.raises(NotReady):
            store.fetch("0" * 64)
