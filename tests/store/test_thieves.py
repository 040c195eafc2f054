"""What is done to the database by who has no key: nothing of it is unpickled."""

import dataclasses
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import bson
import hostile
import pytest
from pymongo.database import Database

from superduper.errors import ArtifactRejected
from superduper.fields.sealing import Sealed
from superduper.store.artifacts import ArtifactStore
from superduper.store.component import Component
from superduper.store.records import artifact_id
from superduper.store.registry import Registry
from superduper.store.signing import Keyring
from superduper.store.unsealing import load
from tests.store.sealed_objects import honest, of_another_python, register


def same(x: int) -> int:
    return x


class Thief:
    """Someone who may write to the database, but has no key that is trusted."""

    def __init__(self, database: Database[Any], registry: Registry, tmp_path: Path) -> None:
        self.database = database
        self.registry = registry
        self.stranger = Registry(
            database, ArtifactStore(database, Keyring.open(tmp_path / "thief"))
        )
        self.components = database["superduper.components"]
        self.records = database["superduper.artifacts"]
        register(registry, "victim", honest(1))
        register(registry, "victim", honest(2))

    def sign_truly(self, name: str, sealed: Sealed) -> Component:
        """What a trainer registered who meant harm: signed, and not for the victim's place."""
        return register(self.registry, name, sealed)

    def move(self, component: Component, *without: str, **changes: Any) -> None:
        """Put another document in the place of the victim's second version."""
        document = {**component.to_document(), **changes, "_id": "docs/model/victim@2"}
        kept = {name: value for name, value in document.items() if name not in without}
        self.components.replace_one({"_id": document["_id"]}, kept)

    def rewrite(self, artifact: str, **changes: Any) -> None:
        self.records.update_one({"_id": artifact}, {"$set": changes})

    def by_a_stranger(self, sealed: Sealed, name: str = "victim") -> Component:
        """Registered with a key that nobody trusts."""
        return register(self.stranger, name, sealed)

    def stolen(self, component: Component) -> dict[str, Any]:
        record = self.records.find_one({"_id": component.artifact})
        assert record is not None
        return record

    @property
    def mine(self) -> Component:
        return self.registry.get("docs", "model", "victim", 2)

    # The tricks; each leaves the sealed object where the victim's is loaded from.

    def trick_unsigned(self, sealed: Sealed) -> None:
        made = self.by_a_stranger(sealed)
        self.rewrite(made.artifact, signature=b"", key="")
        self.move(made, version=2, key="", signature=b"")

    def trick_no_signature_at_all(self, sealed: Sealed) -> None:
        made = self.by_a_stranger(sealed)
        self.records.update_one({"_id": made.artifact}, {"$unset": {"signature": 1, "key": 1}})
        self.move(made, "signature", "key", version=2)

    def trick_other_key(self, sealed: Sealed) -> None:
        made = self.by_a_stranger(sealed)
        self.move(self.stranger._signed(dataclasses.replace(made, version=2)))

    def trick_other_key_for_the_artifact(self, sealed: Sealed) -> None:
        made = self.by_a_stranger(sealed)
        self.records.replace_one(
            {"_id": self.mine.artifact}, {**self.stolen(made), "_id": self.mine.artifact}
        )

    def trick_the_name_of_a_trusted_key(self, sealed: Sealed) -> None:
        made = self.stranger._signed(dataclasses.replace(self.by_a_stranger(sealed), version=2))
        self.rewrite(made.artifact, key=self.mine.key)
        self.move(made, key=self.mine.key)

    def trick_other_bytes(self, sealed: Sealed) -> None:
        made, mine = self.stolen(self.by_a_stranger(sealed, "x")), self.stolen(self.mine)
        self.rewrite(mine["_id"], blob=made["blob"])
        files = self.database["superduper.artifacts.files"]
        files.update_one({"_id": made["blob"]}, {"$set": {"length": mine["record"]["size"]}})

    def trick_swapped(self, sealed: Sealed) -> None:
        self.move(self.sign_truly("bystander", sealed))

    def trick_swapped_and_renamed(self, sealed: Sealed) -> None:
        self.move(self.sign_truly("bystander", sealed), name="victim", version=2)

    def trick_swapped_artifact(self, sealed: Sealed) -> None:
        made = self.stolen(self.sign_truly("bystander", sealed))
        self.records.replace_one({"_id": self.mine.artifact}, {**made, "_id": self.mine.artifact})

    def trick_replayed_version(self, sealed: Sealed) -> None:
        self.move(self.sign_truly("victim", sealed))

    def trick_renumbered_version(self, sealed: Sealed) -> None:
        self.move(self.sign_truly("victim", sealed), version=2)

    def trick_artifact_of_another_version(self, sealed: Sealed) -> None:
        old = self.sign_truly("victim", sealed)
        self.components.update_one(
            {"_id": "docs/model/victim@2"}, {"$set": {"artifact": old.artifact}}
        )

    def trick_edited_record(self, sealed: Sealed) -> None:
        made = self.sign_truly("bystander", sealed)
        stolen = self.stolen(made)
        record = {**stolen["record"], "name": "victim"}
        key = artifact_id(record)
        self.records.insert_one({**stolen, "_id": key, "record": record})
        self.move(made, name="victim", version=2, artifact=key, content=key)


TRICKS = [name for name in vars(Thief) if name.startswith("trick_")]


RECORDS = ("superduper.components", "superduper.artifacts")


def test_there_are_47_kinds_and_more_than_6_tricks() -> None:
    assert len({sha256(code).digest() for code in hostile.kinds("mark").values()}) == 47
    assert len(TRICKS) >= 6


@pytest.mark.parametrize("trick", TRICKS)
def test_no_hostile_pickle_is_read(
    trick: str, database: Database[Any], registry: Registry, tmp_path: Path, read: list[str]
) -> None:
    mark = tmp_path / "mark"
    thief = Thief(database, registry, tmp_path)
    honest_ones = {name: [*database[name].find()] for name in RECORDS}
    for kind, code in hostile.kinds(str(mark)).items():
        for name, documents in honest_ones.items():
            database[name].delete_many({})
            database[name].insert_many(documents)
        sealed = dataclasses.replace(honest(), code=code, modules=())
        getattr(thief, trick)(sealed)
        with pytest.raises(ArtifactRejected):
            load(registry.payload(registry.get("docs", "model", "victim", 2)))
        assert not mark.exists() and not read, f"{kind} was read"


@pytest.mark.parametrize("trick", TRICKS)
def test_no_hostile_payload_is_read_where_the_parent_did_not_look(
    trick: str,
    database: Database[Any],
    registry: Registry,
    keyring: Keyring,
    tmp_path: Path,
    read: list[str],
) -> None:
    mark = tmp_path / "mark"
    thief = Thief(database, registry, tmp_path)
    text = f"open({str(mark)!r}, 'w').close()"
    sealed = of_another_python(same)
    getattr(thief, trick)(dataclasses.replace(sealed, source=text, portable=b"N."))
    document = database["superduper.components"].find_one({"_id": "docs/model/victim@2"})
    assert document is not None
    component = Component.of(document)
    artifact = database["superduper.artifacts"].find_one({"_id": component.artifact})
    assert artifact is not None
    chunks = database["superduper.artifacts.chunks"].find({"files_id": artifact["blob"]}).sort("n")
    payload = {
        **artifact,
        "blob": b"".join(bytes(chunk["data"]) for chunk in chunks),
        "weights": None,
        "component": {
            "record": component.record,
            "key": component.key,
            "signature": component.signature,
        },
        "public_keys": keyring.public_keys(),
    }
    if trick in ("trick_swapped", "trick_replayed_version"):
        assert component.id != document["_id"], "all is in order but the place, which others check"
        return
    with pytest.raises(ArtifactRejected):
        load(payload)
    assert not mark.exists() and not read


def test_every_flipped_bit_of_a_payload_is_noticed(registry: Registry, read: list[str]) -> None:
    payload = registry.payload(register(registry, "m", honest()))
    for place in range(0, len(payload["blob"]), 97):
        blob = bytearray(payload["blob"])
        blob[place] ^= 1 << (place % 8)
        with pytest.raises(ArtifactRejected, match="not those that were signed"):
            load({**payload, "blob": bytes(blob)})
    for name, value in payload["record"].items():
        other = value + 1 if isinstance(value, int) else f"{value}x"
        with pytest.raises(ArtifactRejected):
            load({**payload, "record": {**payload["record"], name: other}})
    for name, value in payload["component"]["record"].items():
        other = value + 1 if isinstance(value, int) else f"{value}x"
        record = {**payload["component"]["record"], name: other}
        with pytest.raises(ArtifactRejected):
            load({**payload, "component": {**payload["component"], "record": record}})
    for missing in ("record", "component", "signature", "key", "blob"):
        with pytest.raises(ArtifactRejected):
            load({name: value for name, value in payload.items() if name != missing})
    assert not read


EXECUTE = """
import bson, pathlib, sys
from superduper.store.unsealing import load
folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.glob("*.bson")):
    try:
        load(bson.decode(path.read_bytes()))
    except Exception:
        pass
    mark = folder / "mark"
    print(path.stem, mark.exists())
    mark.unlink(missing_ok=True)
"""


def test_the_same_pickles_do_run_when_they_are_signed(registry: Registry, tmp_path: Path) -> None:
    corpus = hostile.marking(str(tmp_path / "mark"))
    for kind, code in corpus.items():
        sealed = dataclasses.replace(honest(), code=code, modules=(), format="pickle")
        payload = registry.payload(registry.draft("docs", "model", "m", sealed, "a"))
        (tmp_path / f"{kind}.bson").write_bytes(bson.encode(payload))
    command = [sys.executable, "-c", EXECUTE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    ran = {line.rpartition(" ")[0] for line in done.stdout.splitlines() if line.endswith("True")}
    assert ran == set(corpus), done.stderr
