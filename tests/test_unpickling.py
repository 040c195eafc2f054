"""Nothing is unpickled or run from text outside the one module for it, and no server loads that."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("superduper", "client/superduper_client", "server/superduper_server")
THE_ONE = "superduper/store/unsealing.py"
# The entries of child processes. Nobody else may import the one, for then it could be called there.
ONLY_IN_CHILDREN = {
    "superduper/imputations/fitting/child.py",
    "superduper/serving/hosted.py",
    "superduper/training/group_member.py",
}

# Modules of which nothing may be used that reads, and by what it begins.
READERS = {
    **dict.fromkeys(("pickle", "_pickle", "dill", "dill._dill", "cloudpickle", "joblib"), "load"),
    **dict.fromkeys(("torch", "torch.jit", "torch.package", "torch.serialization"), "load"),
    **dict.fromkeys(("marshal", "skops.io", "yaml"), "load"),
    **dict.fromkeys(("pandas",), "read_pickle"),
    **dict.fromkeys(("shelve",), "open"),
    **dict.fromkeys(("runpy",), "run_"),
}
ALWAYS = ("Unpickler", "_Unpickler", "_load", "_loads")
BUILTINS = ("eval", "exec")
ASKED_BY_NAME = {"torch"}  # for its datatypes; of the other modules nothing may be had by name


def files() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def is_reader(dotted: str) -> bool:
    """Whether a whole name is one of something that makes objects or runs text."""
    module, _, name = dotted.rpartition(".")
    if module == "builtins":
        return name in BUILTINS
    beginning = READERS.get(module)
    return beginning is not None and (name.startswith(beginning) or name in ALWAYS or name == "*")


def dotted_name(node: ast.AST, imported: dict[str, str]) -> str | None:
    """The whole name that an expression stands for, whatever it was imported as."""
    if isinstance(node, ast.Name):
        return imported.get(node.id, f"builtins.{node.id}")
    if isinstance(node, ast.Attribute):
        owner = dotted_name(node.value, imported)
        return owner and f"{owner}.{node.attr}"
    return None


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What is imported anywhere in a module: local name and whole name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or whole, whole
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def offences(text: str) -> list[str]:
    """The uses of readers in a text, as `line: name`."""
    tree = ast.parse(text)
    imported = dict(imports_of(tree))
    found = {f"import: {whole}" for whole in imported.values() if is_reader(whole)}
    for node in ast.walk(tree):
        match node:
            case ast.Name() | ast.Attribute():
                name = dotted_name(node, imported)
                if name is not None and is_reader(name):
                    found.add(f"{node.lineno}: {name}")
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=False)):
                pass
            case ast.keyword(arg="allow_pickle", value=value):
                found.add(f"{value.lineno}: allow_pickle")
            case ast.Call(func=ast.Name(id="getattr"), args=[module, *_]):
                if dotted_name(module, imported) in READERS.keys() - ASKED_BY_NAME:
                    found.add(f"{node.lineno}: getattr({ast.unparse(module)}, ...)")
    return sorted(found)


def test_only_one_module_unpickles_or_runs_text() -> None:
    guilty = {}
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if name != THE_ONE and (found := offences(path.read_text())):
            guilty[name] = found
    assert not guilty
    assert offences((ROOT / THE_ONE).read_text())


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.loads(b'')",
        "import pickle as p\np.load(f)",
        "from pickle import loads as read\nread(b'')",
        "from pickle import Unpickler",
        "from dill import *",
        "def f():\n    import dill\n    class U(dill.Unpickler): ...",
        "import dill._dill\ndill._dill.loads(b'')",
        "import cloudpickle\nread = cloudpickle.loads",
        "import joblib\njoblib.load('x')",
        "import torch\ntorch.load('x', weights_only=True)",
        "import torch.jit\ntorch.jit.load('x')",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
        "import numpy\nnumpy.load('x', allow_pickle=flag)",
        "import pickle\ngetattr(pickle, 'lo' + 'ads')(b'')",
        "import builtins\nbuiltins.exec('1')",
        "eval('1')",
        "run = exec\nrun('1')",
        "import marshal\nmarshal.loads(b'')",
        "import runpy\nrunpy.run_path('x')",
    ],
)
def test_the_ways_to_do_it_are_noticed(text: str) -> None:
    assert offences(text)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.dumps(1)",
        "import dill\nclass P(dill.Pickler): ...",
        "import json\njson.loads('1')",
        "model.eval()",
        "from safetensors.torch import load\nload(b'')",
        "import numpy\nnumpy.load('x', allow_pickle=False)",
        "import torch\nmodel.load_state_dict(state)",
    ],
)
def test_what_is_harmless_is_not(text: str) -> None:
    assert not offences(text)


def test_only_child_processes_import_it() -> None:
    importing = set()
    for path in files():
        names = [whole for _, whole in imports_of(ast.parse(path.read_text()))]
        if any("store.unsealing" in name for name in names):
            importing.add(path.relative_to(ROOT).as_posix())
    assert importing == ONLY_IN_CHILDREN


PARENTS = """
import sys
import superduper, superduper.connection, superduper.service
import superduper.handlers.context, superduper.handlers.components
import superduper.imputations.work, superduper.imputations.watching.crew
import superduper.imputations.fitting.job
import superduper.jobs.child, superduper.serving.hosts, superduper.store.registry
import superduper_client, superduper_server.app, superduper_server.cli, superduper_server.serve
child = {"store.unsealing", "serving.hosted", "imputations.fit_child"}
child = {f"superduper.{name}" for name in child}
print(*sorted((child | {"dill", "cloudpickle", "torch", "joblib"}) & set(sys.modules)))
"""


def test_no_parent_loads_what_unpickles() -> None:
    done = subprocess.run([sys.executable, "-c", PARENTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
