"""Sealed objects under another Python, and on a worker that lacks modules."""

import dataclasses
import json
import pickle
import sys
from typing import Any

import pytest
import torch

from superduper.errors import ArtifactRejected, InvalidInput
from superduper.fields.sealing import seal
from superduper.store.registry import Registry
from superduper.store.unsealing import load
from tests.store.sealed_objects import honest, of_another_python, register


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
