"""Versions never change, a number is never given twice, one version is live."""

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import bson
import pytest
import torch
from pymongo.collection import Collection
from pymongo.database import Database
from safetensors.torch import save

from superduper.errors import ArtifactRejected, NotFound
from superduper.fields.sealing import Sealed, seal
from superduper.store.component import Component
from superduper.store.registry import Registry


@pytest.fixture
def documents(database: Database[Any]) -> Collection[dict[str, Any]]:
    return database["superduper.components"]


def sealed(number: int = 0) -> Sealed:
    return seal({"object": lambda x: x + number})


def register(registry: Registry, name: str = "f", number: int = 0, **more: Any) -> Component:
    place = {"collection": "docs", "kind": "function", "name": name, **more}
    return registry.register(**place, sealed=sealed(number), author="me", details={"load_ms": 3})


def versions(documents: Collection[Any], name: str = "f") -> list[int]:
    found = documents.find({"name": name, "head": False}).sort("version", 1)
    return [document["version"] for document in found]


def test_the_same_content_is_the_same_version(registry: Registry) -> None:
    first = register(registry)
    assert (first.version, first.created_by, first.details["load_ms"]) == (1, "me", 3)
    assert first.details["format"] == "dill" and "x + number" in first.details["source"]
    assert register(registry) == first
    second = register(registry, number=1)
    assert second.version == 2
    assert registry.get("docs", "function", "f") == second, "what is registered goes live"
    assert registry.get("docs", "function", "f", 1) == first
    assert register(registry) == first and registry.get("docs", "function", "f") == second


def test_a_draft_is_nowhere_until_it_is_committed(
    registry: Registry, database: Database[Any]
) -> None:
    draft = registry.draft("docs", "function", "f", sealed(), "me")
    assert registry.payload(draft)["component"]["record"]["version"] == 0
    assert registry.find_same(draft) is None
    assert database.list_collection_names() == []
    made = registry.commit(draft, details={"output": {"type": "int"}})
    assert made.version == 1 and made.details["output"] == {"type": "int"}
    assert registry.find_same(draft) == made == registry.commit(draft)


def test_published_weights_are_a_version_that_is_not_live(registry: Registry) -> None:
    model = seal({"object": torch.nn.Linear(1, 1)})
    base = registry.register("docs", "model", "m", model, author="me")
    origin = {"imputation": "y_from_x", "version": 4, "run": "r"}
    blob = save({"weight": torch.ones(1, 1), "bias": torch.ones(1)})
    made = registry.publish_weights("docs", "m", 1, blob, origin)
    assert (made.version, made.artifact, made.origin) == (2, base.artifact, origin)
    assert made.created_by == "y_from_x" and made.details == base.details
    assert registry.get("docs", "model", "m") == base
    assert registry.publish_weights("docs", "m", 1, blob, origin) == made
    registry.set_live("docs", "model", "m", 2)
    assert registry.get("docs", "model", "m") == made
    again = registry.register("docs", "model", "m", model, author="me")
    assert again == base and registry.get("docs", "model", "m") == made, "nothing changes"
    with pytest.raises(NotFound, match="no version 9"):
        registry.set_live("docs", "model", "m", 9)


# Races and crashes ----------------------------------------------------------------------------


def at_once(count: int, act: Any) -> list[Component]:
    found: list[Component] = []
    threads = [
        threading.Thread(target=lambda number=number: found.append(act(number)))
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == count
    return found


def test_many_who_register_the_same_at_once_get_one_version(
    registry: Registry, documents: Collection[Any]
) -> None:
    found = at_once(8, lambda number: register(registry, number=7))
    assert {component.version for component in found} == {1}
    assert versions(documents) == [1]


def test_many_who_register_different_things_at_once_get_different_versions(
    registry: Registry, documents: Collection[Any]
) -> None:
    found = at_once(8, lambda number: register(registry, number=number // 2))
    assert sorted({component.version for component in found}) == [1, 2, 3, 4]
    assert versions(documents) == [1, 2, 3, 4]
    assert registry.get("docs", "function", "f").version == 4
    for component in found:
        assert registry.get("docs", "function", "f", component.version) == component


REGISTER = """
import bson, pathlib, sys
from superduper.fields.sealing import Sealed
from superduper.store.artifacts import ArtifactStore
from superduper.store.mongo import connect_mongo
from superduper.store.registry import Registry
from superduper.store.signing import Keyring
database = connect_mongo(sys.argv[1])[sys.argv[2]]
sealed = Sealed.from_dict(bson.decode(pathlib.Path(sys.argv[3]).read_bytes()))
registry = Registry(database, ArtifactStore(database, Keyring.open()))
print(registry.register("docs", "function", "f", sealed, author="me").version)
"""


def test_processes_that_register_the_same_at_once_get_one_version(
    store_uri: str, database: Database[Any], documents: Collection[Any], tmp_path: Path
) -> None:
    path = tmp_path / "sealed"
    path.write_bytes(bson.encode(sealed().to_dict()))
    command = [sys.executable, "-c", REGISTER, store_uri, database.name, str(path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[0] for process in started] == [b"1\n"] * 4
    assert versions(documents) == [1]


def test_a_crash_before_the_head_knows_is_healed(
    registry: Registry, documents: Collection[Any]
) -> None:
    first, second = register(registry), register(registry, number=1)
    documents.delete_one({"head": True})
    with pytest.raises(NotFound):
        registry.get("docs", "function", "f")
    assert register(registry, number=1) == second
    assert registry.get("docs", "function", "f") == second
    assert register(registry, number=2).version == 3
    assert registry.get("docs", "function", "f", 1) == first


# Deleting -------------------------------------------------------------------------------------


def test_a_deleted_number_is_not_given_again(
    registry: Registry, documents: Collection[Any]
) -> None:
    register(registry)
    register(registry, number=1)
    registry.delete("docs", "function", "f", 2)
    assert registry.get("docs", "function", "f").version == 1
    assert register(registry, number=2).version == 3
    registry.delete("docs", "function", "f")
    assert registry.list("docs", "function") == [] and versions(documents) == []
    with pytest.raises(NotFound, match="it has no function yet"):
        registry.get("docs", "function", "f")
    with pytest.raises(NotFound):
        registry.delete("docs", "function", "f")
    assert register(registry).version == 4
    assert registry.get("docs", "function", "f").version == 4


def test_deleting_the_only_version_deletes_the_name(registry: Registry) -> None:
    register(registry)
    registry.delete("docs", "function", "f", 1)
    with pytest.raises(NotFound):
        registry.get("docs", "function", "f")
    assert registry.list("docs", "function") == []


# Finding --------------------------------------------------------------------------------------


def test_what_is_listed(registry: Registry) -> None:
    for name in ("b", "a"):
        register(registry, name)
    register(registry, "a", 1)
    register(registry, "elsewhere", collection="other")
    rows = registry.list("docs", "function")
    assert [(row["name"], row["live"], row["latest"]) for row in rows] == [("a", 2, 2), ("b", 1, 1)]
    assert rows[0]["type"].endswith("<lambda>") and rows[0]["created_by"] == "me"
    assert registry.list("docs", "model") == []


def test_what_is_not_there_is_said_with_what_is(registry: Registry) -> None:
    with pytest.raises(NotFound, match="'docs' has no model 'm'; it has no model yet"):
        registry.get("docs", "model", "m")
    register(registry, "my_target")
    with pytest.raises(NotFound, match="no function 'my_taget'; did you mean 'my_target'?"):
        registry.get("docs", "function", "my_taget")
    with pytest.raises(NotFound, match="no function 'x'; there are: my_target"):
        registry.get("docs", "function", "x")
    with pytest.raises(NotFound, match="no model 'my_target'; there is a function of that name"):
        registry.get("docs", "model", "my_target")
    with pytest.raises(NotFound, match="'my_target' .* has no version 7: there are 1"):
        registry.get("docs", "function", "my_target", 7)


def test_an_unsigned_version_is_not_handed_out(
    registry: Registry, documents: Collection[Any]
) -> None:
    made = register(registry)
    with pytest.raises(ArtifactRejected, match="changed after it was sealed"):
        registry.payload(dataclasses.replace(made, created_by="somebody else"))
    documents.update_one({"_id": made.id}, {"$unset": {"signature": 1}})
    with pytest.raises(ArtifactRejected, match="is not signed: register it again"):
        registry.payload(registry.get("docs", "function", "f"))
    documents.update_one({"_id": made.id}, {"$set": {"name": "g"}})
    with pytest.raises(ArtifactRejected, match="is that of something else"):
        registry.get("docs", "function", "f")
