"""Objects are sealed wherever they were defined, and load in a fresh process elsewhere."""

import enum
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from superduper.errors import InvalidInput
from superduper.fields.sealing import Sealed, referenced_modules, seal

LOADER = """
import sys
from superduper.fields.sealing import Sealed
from superduper.store.unsealing import _unpickle
import bson, pathlib
sealed = Sealed.from_dict(bson.decode(pathlib.Path(sys.argv[1]).read_bytes()))
parts = _unpickle(sealed)
print(eval(sys.argv[2], {"it": parts["object"], "parts": parts}))
"""

SEALER = """
import sys, bson, pathlib
sys.path.insert(0, "")
from superduper.fields.sealing import seal
{code}
pathlib.Path(sys.argv[1]).write_bytes(bson.encode(seal({{"object": it}}).to_dict()))
"""


def loaded_elsewhere(path: Path, expression: str) -> str:
    """What an expression about the object gives in a fresh process that knows no script."""
    command = [sys.executable, "-P", "-c", LOADER, str(path), expression]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout.strip()


def sealed_by_script(folder: Path, code: str, *, prompt: bool = False) -> Path:
    """Seal the object `it` of a script that runs as `__main__`, or of a Python prompt."""
    out, text = folder / "sealed", SEALER.format(code=textwrap.dedent(code))
    if prompt:
        command = [sys.executable, "-i", "-", str(out)]
        text = f"import sys; sys.argv[1:] = [{str(out)!r}]\n" + text
        subprocess.run(command, check=True, input=text, capture_output=True, text=True, cwd=folder)
    else:
        script = folder / "script.py"
        script.write_text(text)
        subprocess.run([sys.executable, str(script), str(out)], check=True, cwd=folder)
    return out


MODEL = """
    import torch

    SCALE = 3

    def helper(x):
        return x * SCALE

    class Base(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1, bias=False)

    class Model(Base):
        def __init__(self):
            super().__init__()
            torch.nn.init.ones_(self.layer.weight)

        def forward(self, x):
            return helper(self.layer(x))

    it = Model()
"""


@pytest.mark.parametrize("prompt", [False, True], ids=["script", "prompt"])
def test_a_model_of_main_with_globals_and_bases(tmp_path, prompt):
    code = MODEL if not prompt else textwrap.dedent(MODEL).replace("\n\n    ", "\n    ")
    out = sealed_by_script(tmp_path, code, prompt=prompt)
    assert loaded_elsewhere(out, "it(__import__('torch').ones(1, 2)).item()") == "6.0"


def test_an_enum_and_a_closure_of_main(tmp_path):
    code = """
        import enum

        class Colour(enum.Enum):
            RED = 7

        def make(offset):
            return lambda x: Colour.RED.value + offset + x

        it = make(10)
    """
    assert loaded_elsewhere(sealed_by_script(tmp_path, code), "it(1)") == "18"


def test_a_module_beside_the_script_travels_along(tmp_path):
    (tmp_path / "beside.py").write_text("FACTOR = 5\ndef times(x):\n    return x * FACTOR\n")
    code = "import beside\nit = lambda x: beside.times(x)"
    assert loaded_elsewhere(sealed_by_script(tmp_path, code), "it(2)") == "10"


def test_a_class_of_a_module_beside_the_script(tmp_path):
    (tmp_path / "beside.py").write_text(
        "class Target:\n    def __init__(self, n):\n        self.n = n\n"
        "    def __call__(self, x):\n        return self.n + x\n"
    )
    out = sealed_by_script(tmp_path, "from beside import Target\nit = Target(4)")
    assert loaded_elsewhere(out, "it(2)") == "6"


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(3, 3)
        self.b = torch.nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("view", torch.arange(6.0).reshape(2, 3).t())
        self.a.bias.requires_grad_(False)


def test_tensors_are_apart_and_come_back_as_they_were(tmp_path):
    import bson

    model = Tied()
    sealed = seal({"object": model})
    assert sealed.tensors is not None and sealed.torch_version == str(torch.__version__)
    path = tmp_path / "sealed"
    path.write_bytes(bson.encode(sealed.to_dict()))
    expression = (
        "it.b.weight is it.a.weight, it.a.bias.requires_grad, it.view.tolist(), "
        "it.norm.num_batches_tracked.item(), round(it.a.weight.sum().item(), 4)"
    )
    expected = (
        True,
        False,
        model.view.tolist(),
        0,
        round(model.a.weight.sum().item(), 4),
    )
    assert loaded_elsewhere(path, expression) == str(expected)


class Plain:
    def __init__(self):
        self.table = {"a": 1, "b": [1, 2]}

    def __call__(self, x):
        return self.table[x]


class Kind(enum.Enum):
    ONE = 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()),
        lambda: Plain(),
        lambda: len,
        lambda: Kind,
        lambda: lambda x: x + 1,
    ],
    ids=["module", "instance", "builtin", "enum", "lambda"],
)
def test_the_same_object_gives_the_same_bytes(make):
    value = make()
    first, second = seal({"object": value}), seal({"object": value})
    assert first == second
    assert Sealed.from_dict(first.to_dict()) == first


def test_the_text_of_a_class_is_kept():
    assert "self.table[x]" in seal({"object": Plain()}).source
    assert seal({"object": len}).source is None


def test_needed_modules_are_listed():
    sealed = seal({"object": torch.nn.Linear(1, 1)})
    assert "torch" in sealed.modules
    assert "test_sealing" not in seal({"object": Plain()}).modules
    assert referenced_modules(b"cos\nsystem\n.") == {"os"}


class Holder:
    def __init__(self):
        self.inner = {"lock": threading.Lock()}

    def __call__(self, x):
        return x


def test_what_cannot_be_sealed_is_named_by_its_path():
    with pytest.raises(InvalidInput, match=r"Holder\.inner\.lock.*_thread\.lock.*__getstate__"):
        seal({"object": Holder()})
    with pytest.raises(InvalidInput, match="preprocess"):
        seal({"object": len, "preprocess": (x for x in [])})


@pytest.mark.parametrize("broken", [{}, {"code": 5}, {"code": b"", "tensors": None}])
def test_what_is_not_sealed_is_refused(broken):
    with pytest.raises(InvalidInput, match="not a sealed object"):
        Sealed.from_dict(broken)
