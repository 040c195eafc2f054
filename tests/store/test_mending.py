"""What cannot be loaded any more can be again once the same is registered again, as errors say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pymongo.database import Database
from safetensors.torch import save

from superduper.errors import ArtifactRejected, NotFound
from superduper.fields.sealing import Sealed, seal
from superduper.store.artifacts import ArtifactStore
from superduper.store.component import Component
from superduper.store.registry import Registry
from superduper.store.rotation import revoke, rotate
from superduper.store.signing import Keyring
from superduper.store.unsealing import load

ARTIFACTS, COMPONENTS = "superduper.artifacts", "superduper.components"
MINE = seal({"object": len})


@pytest.fixture
def registry(database: Database[Any], tmp_path: Path) -> Registry:
    return Registry(database, ArtifactStore(database, Keyring.open(tmp_path)))


def register(registry: Registry, name: str = "m", sealed: Sealed = MINE) -> Component:
    return registry.register("docs", "model", name, sealed, author="a")


def loaded(registry: Registry, component: Component) -> Any:
    found = registry.get("docs", component.kind, component.name, component.version)
    return load(registry.payload(found))["object"]


def change(collection: str, **changes: Any) -> Callable[[Database[Any]], Any]:
    return lambda database: database[collection].update_many({}, {"$set": changes})


def remove(collection: str) -> Callable[[Database[Any]], Any]:
    return lambda database: database[collection].delete_many({})


def flip_a_bit(database: Database[Any]) -> None:
    chunks = database[f"{ARTIFACTS}.chunks"]
    for chunk in list(chunks.find()):
        data = bytearray(chunk["data"])
        data[len(data) // 2] ^= 1
        chunks.update_one({"_id": chunk["_id"]}, {"$set": {"data": bytes(data)}})


DAMAGE: dict[str, Callable[[Database[Any]], Any]] = {
    "no file": remove(f"{ARTIFACTS}.files"),
    "no chunks": remove(f"{ARTIFACTS}.chunks"),
    "no record": remove(ARTIFACTS),
    "a flipped bit": flip_a_bit,
    "no bytes": change(f"{ARTIFACTS}.chunks", data=None),
    "chunks of nothing": change(f"{ARTIFACTS}.files", chunkSize=0),
    "chunks of what": change(f"{ARTIFACTS}.files", chunkSize="x"),
    "another length": change(f"{ARTIFACTS}.files", length=10**12),
    "a filter for a blob": change(ARTIFACTS, blob={"of": 1}),
    "no signature": change(ARTIFACTS, signature=None),
    "another record": change(ARTIFACTS, **{"record.created_by": "somebody"}),
    "a record that is none": change(ARTIFACTS, record=[]),
    "a version not signed": change(COMPONENTS, signature=b""),
    "another artifact": change(COMPONENTS, artifact="0" * 64),
    "weights from nowhere": change(COMPONENTS, weights="0" * 64),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_registering_again_mends(kind: str, database: Database[Any], registry: Registry) -> None:
    made = register(registry)
    DAMAGE[kind](database)
    with pytest.raises((ArtifactRejected, NotFound)):
        loaded(registry, made)
    again = register(registry)
    assert (again.version, again.content) == (1, made.content)
    assert loaded(registry, again) is len
    assert register(registry) == again
    assert [row["latest"] for row in registry.list("docs", "model")] == [1]


def test_what_a_revoked_key_signed_is_refused_until_it_is_registered_again(
    registry: Registry, tmp_path: Path
) -> None:
    model = torch.nn.Linear(1, 1)
    base = register(registry, sealed=seal({"object": model}))
    weights = save({"weight": torch.full((1, 1), 4.0), "bias": torch.zeros(1)})
    trained = registry.publish_weights("docs", "m", 1, weights, {"run": "r"})
    registry.set_live("docs", "model", "m", trained.version)
    revoke(tmp_path, base.key)
    for component in (base, trained):
        with pytest.raises(ArtifactRejected, match="does not trust: register it again"):
            loaded(registry, component)
    assert register(registry, sealed=seal({"object": model})).version == 1
    assert loaded(registry, base).weight.item() == model.weight.item()
    assert registry.publish_weights("docs", "m", 1, weights, {"run": "s"}).version == 2
    assert loaded(registry, trained).weight.item() == 4.0
    assert registry.get("docs", "model", "m").version == 2


def test_what_was_deleted_before_its_key_was_revoked_can_be_registered(
    registry: Registry, tmp_path: Path
) -> None:
    made = register(registry)
    registry.delete("docs", "model", "m")
    revoke(tmp_path, made.key)
    assert loaded(registry, register(registry)) is len


def test_a_rotation_changes_nothing_for_what_is_registered(
    registry: Registry, tmp_path: Path
) -> None:
    made = register(registry)
    rotate(tmp_path, "code")
    assert loaded(registry, made) is len
    assert register(registry) == made


def test_damaged_bytes_are_not_shared(database: Database[Any], registry: Registry) -> None:
    register(registry)
    flip_a_bit(database)
    assert loaded(registry, register(registry, "other")) is len


def test_a_version_in_the_place_of_another_is_not_the_same(
    database: Database[Any], registry: Registry
) -> None:
    made = register(registry)
    database[COMPONENTS].delete_one({"_id": made.id})
    database[COMPONENTS].insert_one({**made.to_document(), "_id": "docs/model/m@2"})
    with pytest.raises(ArtifactRejected, match="that of something else"):
        registry.get("docs", "model", "m", 2)
    again = register(registry)
    assert again.version == 3
    assert loaded(registry, again) is len


@pytest.mark.parametrize("before", [0, 1])
def test_a_crash_between_version_and_head_is_repaired(
    before: int, database: Database[Any], registry: Registry
) -> None:
    if before:
        register(registry, sealed=seal({"object": max}))
    head = database[COMPONENTS].find_one({"_id": "docs/model/m"})
    made = register(registry)
    database[COMPONENTS].delete_one({"_id": "docs/model/m"})
    if head is not None:
        database[COMPONENTS].insert_one(head)
    assert register(registry) == made
    assert registry.get("docs", "model", "m") == made


def test_registering_what_was_rolled_back_does_not_make_it_live(registry: Registry) -> None:
    register(registry, sealed=seal({"object": max}))
    register(registry)
    registry.set_live("docs", "model", "m", 1)
    assert register(registry).version == 2
    assert registry.get("docs", "model", "m").version == 1


@pytest.mark.parametrize("latest", ["x", None, {}])
def test_a_head_that_is_nonsense_stops_nobody(
    latest: Any, database: Database[Any], registry: Registry
) -> None:
    register(registry, sealed=seal({"object": max}))
    database[COMPONENTS].update_one({"head": True}, {"$set": {"latest": latest}})
    assert register(registry).version == 2
