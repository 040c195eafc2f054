"""Nothing is unpickled that is not signed, whole, in its own place, and fit for this Python."""

import dataclasses
import functools
import json
import pickle
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import bson
import dill
import hostile
import pytest
import torch
from pymongo.database import Database
from safetensors.torch import save

from superduper.errors import ArtifactRejected, InvalidInput, NotAllowed
from superduper.fields.sealing import Sealed, seal
from superduper.store import unsealing
from superduper.store.artifacts import ArtifactStore
from superduper.store.component import Component
from superduper.store.records import artifact_id
from superduper.store.registry import Registry
from superduper.store.signing import Keyring
from superduper.store.unsealing import load


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring.open(tmp_path / "home")


@pytest.fixture
def registry(database: Database[Any], keyring: Keyring) -> Registry:
    return Registry(database, ArtifactStore(database, keyring))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was unpickled, by which library."""
    calls: list[str] = []

    def watched(base: type) -> type:
        class Watched(base):  # type: ignore[misc]
            def load(self) -> Any:
                calls.append(base.__module__)
                return super().load()

        return Watched

    monkeypatch.setattr(pickle, "Unpickler", watched(pickle.Unpickler))
    monkeypatch.setattr(dill, "Unpickler", watched(dill.Unpickler))
    return calls


def register(registry: Registry, name: str, sealed: Sealed) -> Component:
    return registry.register("docs", "model", name, sealed, author="a")


@functools.cache
def honest(number: int = 1) -> Sealed:
    return seal({"object": lambda x: x + number, "preprocess": None, "postprocess": None})


# What honest people see -----------------------------------------------------------------------


def test_an_honest_object_is_loaded_after_it_is_verified(
    registry: Registry, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("verify_component", "verify_artifact", "_check_modules", "_read"):
        given = getattr(unsealing, name)

        def noting(*arguments: Any, name: str = name, given: Any = given) -> Any:
            order.append(name)
            assert not read, f"something was unpickled before {name}"
            return given(*arguments)

        monkeypatch.setattr(unsealing, name, noting)
    parts = load(registry.payload(register(registry, "m", honest())))
    assert parts["object"](2) == 3 and parts["preprocess"] is None
    assert order == ["verify_component", "verify_artifact", "_check_modules", "_read"]
    assert len(read) == 1


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.b.weight = self.a.weight
        self.norm = torch.nn.BatchNorm1d(2)
        self.steps = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
        self.activation = lambda x: torch.relu(x) + 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.steps(self.norm(self.b(self.a(x)))))


def test_published_weights_are_put_into_the_model(registry: Registry) -> None:
    model, trained = Tied().eval(), Tied().eval()
    base = register(registry, "m", seal({"object": model}))
    weights = {name: value.clone() for name, value in trained.state_dict().items()}
    origin = {"imputation": "y", "version": 1, "run": "r"}
    made = registry.publish_weights("docs", "m", base.version, save(weights), origin)
    x = torch.randn(4, 2)
    assert torch.equal(load(registry.payload(base))["object"](x), model(x))
    loaded = load(registry.payload(made))["object"]
    assert torch.equal(loaded(x), trained(x))
    assert loaded.a.weight is loaded.b.weight and not loaded.training


def with_domain(registry: Registry, threshold: float = 1.0) -> Component:
    """A trained version that has a domain."""
    if not registry.versions("docs", "model", "m"):
        register(registry, "m", seal({"object": torch.nn.Linear(1, 1)}))
    weights = save({"weight": torch.ones(1, 1), "bias": torch.ones(1)})
    domain = save({"threshold": torch.tensor(threshold)})
    return registry.publish_weights("docs", "m", 1, weights, {}, domain)


def test_a_domain_comes_with_its_version_and_makes_it_another_one(registry: Registry) -> None:
    made = with_domain(registry)
    assert load(registry.payload(made))["domain"] == {"threshold": torch.tensor(1.0)}
    weights = registry.payload(made)["weights"]["blob"]
    assert registry.publish_weights("docs", "m", 1, weights, {}).version == made.version + 1
    assert with_domain(registry) == made
    assert with_domain(registry, 2.0).version == made.version + 2
    plain = registry.get("docs", "model", "m", 1)
    assert load(registry.payload(plain))["domain"] is None


@pytest.mark.parametrize("harm", ["bytes", "left out", "another", "weights", "unsigned"])
def test_a_domain_that_is_not_the_one_that_was_signed_is_rejected_before_the_pickle(
    registry: Registry, read: list[str], harm: str
) -> None:
    made, other = with_domain(registry), with_domain(registry, 9.0)
    payload = registry.payload(made)
    if harm == "bytes":
        blob = payload["domain"]["blob"]
        payload["domain"]["blob"] = blob[:-1] + bytes([blob[-1] ^ 1])
    elif harm == "left out":
        payload["domain"] = None
    elif harm == "another":
        payload["domain"] = registry.payload(other)["domain"]
    elif harm == "weights":
        payload["domain"] = payload["weights"]
    else:
        del payload["component"]["record"]["domain"]
    read.clear()
    with pytest.raises(ArtifactRejected):
        load(payload)
    assert read == []


def test_a_domain_is_no_garbage_while_a_version_names_it(
    registry: Registry, database: Database[Any], keyring: Keyring
) -> None:
    made = with_domain(registry)
    store = ArtifactStore(database, keyring)
    assert store.collect_garbage(min_age_hours=-1) == 0
    assert load(registry.payload(made))["domain"] is not None
    registry.delete("docs", "model", "m", made.version)
    assert store.collect_garbage(min_age_hours=-1) == 2  # with the weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a.weight": torch.ones(2, 2)}, "its weights do not fit its code: .*Missing key"),
        ({"weight": torch.ones(9, 9), "bias": torch.ones(2)}, "size mismatch"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    registry: Registry, weights: dict[str, torch.Tensor], message: str
) -> None:
    base = register(registry, "m", seal({"object": torch.nn.Linear(2, 2)}))
    made = registry.publish_weights("docs", "m", base.version, save(weights), {})
    with pytest.raises(ArtifactRejected, match=f"(?s){message}"):
        load(registry.payload(made))


def test_weights_for_what_takes_none_are_refused(registry: Registry) -> None:
    base = register(registry, "m", honest())
    made = registry.publish_weights("docs", "m", 1, save({"w": torch.ones(1)}), {})
    assert load(registry.payload(base))["object"](1) == 2
    with pytest.raises(ArtifactRejected, match="a function takes no weights"):
        load(registry.payload(made))


# Another Python, another worker ---------------------------------------------------------------


def scale(x: int) -> int:
    return offset(x) * FACTOR


def offset(x: int) -> int:
    return x + len(json.dumps([]))


FACTOR = 3


class Doubler(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        self.steps = [scale]
        torch.nn.init.constant_(self.layer.weight, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.steps[0](self.layer(x))


def of_another_python(thing: Any) -> Sealed:
    """As if sealed by Python 3.12; its bytecode, which must not be touched, is no pickle at all."""
    sealed = seal({"object": thing})
    return dataclasses.replace(
        sealed, code=b"bytecode of another Python", python_tag="cpython-312", magic="cb0d0d0a"
    )


def test_bytecode_of_another_python_is_refused(registry: Registry, read: list[str]) -> None:
    component = register(registry, "m", of_another_python(lambda x: x))
    with pytest.raises(
        ArtifactRejected, match="(?s)sealed under cpython-312, this worker runs"
    ) as e:
        load(registry.payload(component))
    assert f"runs {sys.implementation.cache_tag}: register it again from there" in str(e.value)
    assert not read


def test_another_magic_number_alone_is_refused(registry: Registry) -> None:
    sealed = dataclasses.replace(honest(), magic="00000000")
    with pytest.raises(ArtifactRejected, match="register it again"):
        load(registry.payload(register(registry, "m", sealed)))


@pytest.mark.parametrize(("thing", "expected"), [(scale, 9), (Doubler(), 12.0)])
def test_top_level_code_is_rebuilt_from_its_source(
    registry: Registry, thing: Any, expected: float
) -> None:
    loaded = load(registry.payload(register(registry, "m", of_another_python(thing))))["object"]
    argument = 1 if thing is scale else torch.ones(1, 1)
    assert loaded(argument) == expected
    assert loaded is not thing and type(loaded).__module__ != __name__


def test_what_has_no_code_of_its_own_fits_every_python(registry: Registry) -> None:
    sealed = seal({"object": torch.nn.Linear(2, 1)})
    sealed = dataclasses.replace(sealed, python_tag="cpython-399", magic="00000000")
    loaded = load(registry.payload(register(registry, "m", sealed)))["object"]
    assert loaded(torch.ones(1, 2)).shape == (1, 1)


def test_missing_modules_are_named_before_anything_is_read(
    registry: Registry, read: list[str]
) -> None:
    sealed = dataclasses.replace(honest(), modules=("dill", "foo", "bar_none"))
    component = register(registry, "m", sealed)
    with pytest.raises(
        InvalidInput, match="model 'm' needs the module 'foo'.*pip install foo bar_none"
    ):
        load(registry.payload(component))
    assert not read


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "joblib"},
        {"code": pickle.dumps({"object": 1}).replace(b"K\x01", b"I1\n")[:-1] + b"P9\n."},
        {"code": b"(\x8c\x15superduper.definition\x8c\x02ostQ.", "format": "pickle"},
        {"code": b"(\x8c\x12superduper.storage\x8c\x019NtQ.", "format": "pickle"},
    ],
)
def test_what_is_sealed_wrongly_is_refused(registry: Registry, changes: dict[str, Any]) -> None:
    component = register(registry, "m", dataclasses.replace(honest(), **changes))
    with pytest.raises(ArtifactRejected):
        load(registry.payload(component))


# What thieves of the database try -------------------------------------------------------------


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
    sealed = of_another_python(scale)
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


def test_the_order_is_signature_then_hash_then_size(registry: Registry) -> None:
    payload = registry.payload(register(registry, "m", honest()))
    longer = payload["blob"] + b"x"
    unsigned = {**payload["record"], "size": 1}
    with pytest.raises(ArtifactRejected, match="the signature is not of this record"):
        load({**payload, "record": unsigned, "blob": longer})
    with pytest.raises(ArtifactRejected, match="the stored bytes are not those"):
        load({**payload, "blob": longer})


def test_a_weights_key_signs_no_code(
    database: Database[Any], registry: Registry, tmp_path: Path, keyring: Keyring
) -> None:
    base = register(registry, "m", seal({"object": torch.nn.Linear(1, 1)}))
    worker = Keyring.open(tmp_path / "worker")
    worker.create("weights")
    mine, theirs = tmp_path / "home" / "keys", tmp_path / "worker" / "keys"
    for source, target in ((mine, theirs), (theirs, mine)):
        for path in source.glob("*.pub"):
            shutil.copy(path, target)
    abroad = Registry(database, ArtifactStore(database, worker))
    weights = save({"weight": torch.full((1, 1), 4.0), "bias": torch.zeros(1)})
    made = abroad.publish_weights("docs", "m", base.version, weights, {})
    assert load(registry.payload(made))["object"](torch.ones(1, 1)).item() == 4.0
    with pytest.raises(NotAllowed, match="this machine may not sign code"):
        register(abroad, "m", honest())
    draft = registry.draft("docs", "model", "m", honest(), "a")
    key, signature = worker.sign({**draft.artifacts[0].record}, "weights")
    payload = {**registry.payload(draft), "key": key, "signature": signature}
    with pytest.raises(ArtifactRejected, match="a key that is not for code"):
        load(payload)


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
