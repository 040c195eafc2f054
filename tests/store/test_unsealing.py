"""Nothing is unpickled that is not signed, whole, in its own place, and fit for this Python."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pymongo.database import Database
from safetensors.torch import save

from superduper.errors import ArtifactRejected, NotAllowed
from superduper.fields.sealing import seal
from superduper.store import unsealing
from superduper.store.artifacts import ArtifactStore
from superduper.store.component import Component
from superduper.store.registry import Registry
from superduper.store.signing import Keyring
from superduper.store.unsealing import load
from tests.store.sealed_objects import honest, register

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
