"""Objects are sealed wherever they were defined, and load in a fresh process elsewhere."""

import enum
import functools
import io
import json
import os
import subprocess
import sys
import textwrap
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

LOADER = """
import bson, pathlib, sys, types
sys.modules["__main__"] = types.ModuleType("__main__")
from superduper.fields.sealing import Sealed
from superduper.store.unsealing import _read
sealed = Sealed.from_dict(bson.decode(pathlib.Path(sys.argv[1]).read_bytes()))
parts = _read(sealed)
import torch
print(eval(sys.argv[2], {"it": parts["object"], "torch": torch}))
"""

SEALER = """
import sys, bson, pathlib
from superduper.fields.sealing import seal
{code}
pathlib.Path({out!r}).write_bytes(bson.encode(seal({{"object": it}}).to_dict()))
"""


def run(command: list[str], folder: Path, text: str | None = None, **variables: str) -> str:
    """What a program prints; its errors fail the test."""
    done = subprocess.run(
        command,
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_elsewhere(path: Path, expression: str) -> str:
    """What an expression about the object gives in a fresh process that knows no script."""
    return run([sys.executable, "-P", "-c", LOADER, str(path), expression], Path("/"))


def by_script(folder: Path, code: str, **variables: str) -> Path:
    """Seal the object `it` of a script that runs as `__main__`."""
    out, script = folder / "sealed", folder / "script.py"
    script.write_text(SEALER.format(code=textwrap.dedent(code), out=str(out)))
    run([sys.executable, str(script)], folder, **variables)
    return out


def by_prompt(folder: Path, code: str) -> Path:
    """Seal the object `it` that was typed at Python's prompt."""
    out = folder / "sealed"
    typed = SEALER.format(code=textwrap.dedent(code), out=str(out))
    lines = "\n".join(  # a block ends with an empty line at the prompt, and holds none
        f"\n{line}" if line and not line[0].isspace() else line
        for line in typed.splitlines()
        if line.strip()
    )
    run([sys.executable, "-i", "-q"], folder, f"{lines}\n")
    return out


def by_notebook(folder: Path, code: str) -> Path:
    """Seal the object `it` of a notebook's cells."""
    import nbformat
    from nbclient import NotebookClient

    out = folder / "sealed"
    cells = SEALER.format(code=textwrap.dedent(code), out=str(out)).split("\n\n\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute(cwd=str(folder))
    return out


PLACES = [
    by_script,
    by_prompt,
    pytest.param(by_notebook, marks=pytest.mark.filterwarnings("ignore")),
]

MODEL = """
    import torch, enum, functools, math

    SCALE = 3

    class Colour(enum.Enum):
        RED = 7

    def helper(x):
        return x * SCALE + math.floor(0.5)


    class Base(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1, bias=False)

        @functools.cached_property
        def offset(self):
            return Colour.RED.value

    class Model(Base):
        def __init__(self):
            super().__init__()
            torch.nn.init.ones_(self.layer.weight)
            self.kind = Colour.RED
            self.last = lambda x: x + self.offset

        def forward(self, x):
            return self.last(helper(self.layer(x)))

    it = Model()
"""


@pytest.mark.parametrize("sealed_by", PLACES)
def test_a_model_with_globals_bases_enum_and_lambda(
    tmp_path: Path, sealed_by: Callable[[Path, str], Path]
) -> None:
    out = sealed_by(tmp_path, MODEL)
    assert loaded_elsewhere(out, "it(torch.ones(1, 2)).item(), it.kind.name") == "(13.0, 'RED')"


@pytest.mark.parametrize("sealed_by", PLACES)
def test_a_plain_function_and_its_text(
    tmp_path: Path, sealed_by: Callable[[Path, str], Path]
) -> None:
    out = sealed_by(tmp_path, "\nLIMIT = 4\n\n\ndef it(x):\n    return x + LIMIT\n")
    assert loaded_elsewhere(out, "it(1)") == "5"
    source = bson.decode(out.read_bytes())["source"]
    if sealed_by is by_prompt:
        assert source is None, "a prompt keeps no text"
    else:
        assert source == "def it(x):\n    return x + LIMIT\n\n\nLIMIT = 4\n"


# Modules beside the script --------------------------------------------------------------------


def test_a_function_of_a_module_beside_the_script(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("FACTOR = 5\ndef times(x):\n    return x * FACTOR\n")
    code = "import beside\nit = lambda x: beside.times(x)"
    assert loaded_elsewhere(by_script(tmp_path, code), "it(2)") == "10"


def test_a_class_of_a_package_on_pythonpath(tmp_path: Path) -> None:
    package = tmp_path / "elsewhere" / "mine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from mine.parts import Target\n")
    (package / "parts.py").write_text(
        "class Target:\n    def __init__(self, n):\n        self.n = n\n"
        "    def __call__(self, x):\n        return self.n + x\n"
    )
    code = "from mine import Target\nit = Target(4)"
    out = by_script(tmp_path, code, PYTHONPATH=str(package.parent))
    assert loaded_elsewhere(out, "it(2)") == "6"
    assert "mine" not in bson.decode(out.read_bytes())["modules"]


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


def test_plain_objects_are_sealed_without_torch(tmp_path: Path) -> None:
    code = """
        class Target:
            def __call__(self, label):
                import torch
                return torch.tensor(len(label))

        it = Target()
        seal({"object": it})
        assert not {"torch", "safetensors", "numpy", "cryptography"} & set(sys.modules)
    """
    assert loaded_elsewhere(by_script(tmp_path, code), "it('four').item()") == "4"


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


CONTENT = """
    import math, re, json, torch, enum
    from dataclasses import dataclass

    names = {"alpha", "beta", "gamma"}

    @dataclass
    class Settings:
        rate: float = 0.1
        label: str = "x"

    class Colour(enum.Enum):
        RED = 1

    def helper(x):
        return re.sub("a", "b", x) + str(math.pi) + json.dumps(sorted(names))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.settings = Settings()
            %s
            self.layer = torch.nn.Linear(2, 2)
            torch.nn.init.ones_(self.layer.weight); torch.nn.init.zeros_(self.layer.bias)

        def forward(self, x):
            return helper(x), x in {"one", "two", "three"}

    it = Model()
"""


@pytest.mark.parametrize("more", ["pass", "self.kind = Colour.RED"], ids=["dill", "cloudpickle"])
def test_a_script_that_runs_again_gives_the_same_bytes(tmp_path: Path, more: str) -> None:
    code = CONTENT % more
    if more != "pass":  # cloudpickle leaves sets in the order of this process
        code = code.replace("sorted(names)", "[]").replace(', x in {"one", "two", "three"}', "")
    first, second = (
        by_script(tmp_path, code, PYTHONHASHSEED=seed).read_bytes() for seed in ("1", "2")
    )
    assert first == second
    assert bson.decode(first)["format"] == ("dill" if more == "pass" else "cloudpickle")


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
