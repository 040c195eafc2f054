"""Objects are sealed wherever they were defined: in a script, at a prompt, in a notebook."""

from collections.abc import Callable
from pathlib import Path

import bson
import pytest

from tests.fields.elsewhere import by_notebook, by_prompt, by_script, loaded_elsewhere

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
