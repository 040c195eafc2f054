"""What is sealed of an object, the same each time; what cannot be sealed, and why."""

import enum
import functools
import io
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bson
import numpy
import pymongo
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from superduper.errors import InvalidInput
from superduper.fields.sealing import Sealed, seal
from tests.fields.elsewhere import loaded_elsewhere


def test_what_was_registered_by_value_before_stays_so() -> None:
    import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        seal({"object": Kind})
        assert __name__ in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    seal({"object": Kind})
    assert not cloudpickle.list_registry_pickle_by_value()


# Tensors --------------------------------------------------------------------------------------


class Various(torch.nn.Module):
    """Every way in which tensors are shared and laid out."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(3, 3)
        self.b = torch.nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.norm = torch.nn.BatchNorm1d(3)
        self.drop = torch.nn.Dropout(0.5)
        self.steps = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).t())
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.base = torch.arange(10)
        self.view = self.base[2:4]
        self.half = torch.ones(3, dtype=torch.bfloat16)
        self.none = torch.zeros(0, 4)
        self.truth = torch.tensor([True, False])
        self.wave = torch.tensor([1 + 2j])
        self.sparse = torch.eye(2).to_sparse()
        self.marked = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.marked.tag = "kept"
        self.a.bias.requires_grad_(False)


CHECK = """(
    it.b.weight is it.a.weight, it.a.weight.requires_grad, it.a.bias.requires_grad,
    type(it.marked).__name__, it.marked.tag, it.turned.tolist(), it.turned.is_contiguous(),
    it.view.tolist(), it.view.untyped_storage().data_ptr() == it.base.untyped_storage().data_ptr(),
    str(it.half.dtype), tuple(it.none.shape), it.truth.tolist(), it.wave.tolist(),
    it.sparse.to_dense().tolist(), sorted(it.state_dict()), it.norm.num_batches_tracked.item(),
    sum(p.double().sum().item() for p in it.parameters()),
)"""


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    model = Various()
    sealed = seal({"object": model})
    assert sealed.tensors is not None and sealed.torch_version == str(torch.__version__)
    path = tmp_path / "sealed"
    path.write_bytes(bson.encode(sealed.to_dict()))
    expected = eval(CHECK, {"it": model})
    assert loaded_elsewhere(path, CHECK.replace("\n", " ")) == str(expected)


def test_no_tensor_is_in_the_pickle() -> None:
    model = torch.nn.Linear(300, 300)
    sealed = seal({"object": model})
    assert len(sealed.code) < 3000 and len(sealed.tensors or b"") > 360_000
    torch.nn.init.ones_(model.weight)
    assert seal({"object": model}).code == sealed.code


def test_a_tensor_with_a_history_is_sealed_without_it(tmp_path: Path) -> None:
    path = tmp_path / "sealed"
    value = torch.ones(2, requires_grad=True) * 2
    path.write_bytes(bson.encode(seal({"object": [value]}).to_dict()))
    assert loaded_elsewhere(path, "it[0].tolist(), it[0].grad_fn") == "([2.0, 2.0], None)"


# Same content, same bytes ---------------------------------------------------------------------


class Plain:
    def __init__(self) -> None:
        self.table = {"a": 1, "b": [1, 2]}

    def __call__(self, x: str) -> Any:
        return self.table[x]


class Kind(enum.Enum):
    ONE = 1


def times_two(x: int) -> int:
    return x * TWO if x not in {"one", "two", "three"} else x


TWO = 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()),
        Various,
        Plain,
        lambda: len,
        lambda: Kind,
        lambda: times_two,
        lambda: lambda x: x + TWO,
        lambda: LogisticRegression().fit(numpy.eye(4), [0, 1, 0, 1]),
        lambda: functools.partial(times_two, 1),
        lambda: str.upper,
    ],
)
def test_the_same_object_gives_the_same_bytes(make: Callable[[], Any]) -> None:
    value = make()
    first, second = seal({"object": value}), seal({"object": value})
    assert first == second
    assert Sealed.from_dict(first.to_dict()) == first
    assert Sealed.from_dict(bson.decode(bson.encode(first.to_dict()))) == first


# What is noted --------------------------------------------------------------------------------


def test_what_is_noted_about_an_object() -> None:
    sealed = seal({"object": Plain(), "preprocess": times_two})
    assert (sealed.python_tag, sealed.type) == (sys.implementation.cache_tag, f"{__name__}.Plain")
    assert "self.table[x]" in (sealed.source or "") and "x * TWO" in (sealed.source or "")
    assert seal({"object": len}).source is None
    assert seal({"object": len}).type == "builtins.len"


def test_needed_packages_are_listed() -> None:
    assert seal({"object": torch.nn.Linear(1, 1)}).modules == ("torch",)
    assert seal({"object": lambda x: json.dumps(numpy.sum(x))}).modules == ("dill", "numpy")
    assert "cloudpickle" in seal({"object": Kind}).modules
    assert not {"test_sealing", "tests"} & set(seal({"object": Plain()}).modules)
    assert seal({"object": len}).modules == ()


# What cannot be sealed ------------------------------------------------------------------------


class Holder:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, x: Any) -> Any:
        return x


class Slotted:
    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.RLock()


class Exploding:
    def __reduce__(self) -> Any:
        raise OSError("on fire")


def with_handle(handle: Any) -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    model[0].handle = handle
    return model


def test_what_cannot_be_sealed_is_named_with_what_to_do() -> None:
    with open(__file__) as handle, pymongo.MongoClient(connect=False) as client:
        lock = threading.Lock()
        cases: list[tuple[Any, str]] = [
            (Holder({"x": [1, lock]}), r"Holder\.inner\['x'\]\[1\] \(_thread\.lock\) cannot be .*"),
            (Holder(handle), r"Holder\.inner \(_io\.TextIOWrapper\) .*: open it when it is needed"),
            (with_handle(handle), r"Sequential\.0\.handle \(_io\.TextIOWrapper\)"),
            (Holder(x for x in [1]), r"Holder\.inner \(generator\) .*: keep a list"),
            (Holder(client), r"Holder\.inner \(pymongo.*MongoClient\) .*no access to the database"),
            (Holder(client["a"]["b"]), r"Holder\.inner \(pymongo.*Collection\)"),
            (Holder(Slotted()), r"Holder\.inner\.lock \(_thread\.RLock\)"),
            (Holder(threading.Thread()), r"Holder\.inner\._\w+.*lock\)"),
            (lambda x: handle, r"<lambda>\.handle \(_io\.TextIOWrapper\)"),
            (functools.partial(times_two, lock), r"partial\.args\[0\] \(_thread\.lock\)"),
            (Holder(lock).__call__, r"__self__\.inner \(_thread\.lock\)"),
            (Holder(Exploding()), r"Holder\.inner \(.*Exploding\) cannot be sealed: on fire"),
            (Holder(sys._getframe()), r"Holder\.inner \(frame\)"),
        ]
        for thing, message in cases:
            with pytest.raises(InvalidInput, match=message):
                seal({"object": thing})
    with pytest.raises(InvalidInput, match=r"preprocess \(generator\)"):
        seal({"object": len, "preprocess": (x for x in [])})


def test_buffers_in_memory_may_be_sealed() -> None:
    assert seal({"object": [io.BytesIO(b"x")]}).format == "pickle"


def test_deep_nesting_is_an_error() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidInput, match="cannot be sealed"):
        seal({"object": Holder(deep)})
    while deep:  # freed from the outside in, or the interpreter would recurse itself
        deep = deep[0]


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"code": 5},
        {"code": b"", "tensors": None},
        {"code": {"$gt": 1}},
    ],
)
def test_what_is_not_sealed_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="not a sealed object"):
        Sealed.from_dict(broken)
    whole = seal({"object": len}).to_dict()
    with pytest.raises(InvalidInput, match="not a sealed object"):
        Sealed.from_dict({**whole, "modules": [1]})
    with pytest.raises(InvalidInput, match="not a sealed object"):
        Sealed.from_dict({**whole, "tensors": "text"})
