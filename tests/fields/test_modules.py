"""Which modules a worker can import, and what a pickle asks for."""

import json
import os.path
import pickle
import subprocess
import sys
import types
import xml.etree.ElementTree
from pathlib import Path

import cloudpickle
import dill
import numpy
import pytest
import torch

from superduper.fields.modules import is_local, local_modules, needed, referenced


def test_installed_modules_are_not_local() -> None:
    assert os.path and xml.etree.ElementTree and json and numpy and torch.nn
    names = ["os", "os.path", "json", "sys", "numpy", "numpy.linalg", "torch.ops", "torch.nn"]
    names += ["superduper.fields.modules", "xml.etree.ElementTree", "bson", "_thread", "nothing"]
    assert [name for name in names if is_local(name)] == []


def test_this_module_and_main_are_local() -> None:
    assert is_local(__name__) and is_local("__main__")
    assert sys.modules[__name__] in local_modules()
    installed = {"torch", "numpy", "superduper", "pytest", "_pytest", "sklearn"}
    assert not {module.__name__.partition(".")[0] for module in local_modules()} & installed


def test_a_module_made_on_the_fly_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_here", types.ModuleType("made_here"))
    assert is_local("made_here")


SCRIPT = """
import sys
from superduper.fields.modules import is_local
import {name}
print(is_local({name!r}))
"""


def local_in_script(folder: Path, name: str) -> bool:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(name=name))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def test_beside_the_script(tmp_path: Path) -> None:
    (tmp_path / "alone.py").touch()
    package = tmp_path / "package" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").touch()
    (package / "deep.py").touch()
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "part.py").touch()
    for name in ("alone", "package", "package.inner.deep", "space.part"):
        assert local_in_script(tmp_path, name), name


def test_what_pip_put_into_a_folder_of_its_own_is_installed(tmp_path: Path) -> None:
    (tmp_path / "tool.py").touch()
    (tmp_path / "tool-1.0.dist-info").mkdir()
    assert not local_in_script(tmp_path, "tool")


def test_what_is_installed_in_editable_mode_is_installed(tmp_path: Path) -> None:
    project, site = tmp_path / "project", tmp_path / "site"
    (project / "tool").mkdir(parents=True)
    (project / "tool" / "__init__.py").touch()
    (project / "tests").mkdir()
    (project / "tests" / "beside.py").touch()
    site.mkdir()
    (site / "tool.pth").write_text(f"# a comment\nimport sys\n{project}\n")
    code = f"""
import site, sys
site.getsitepackages = lambda: [{str(site)!r}]
sys.path += [{str(project)!r}, {str(project / "tests")!r}]
import tool, beside
from superduper.fields.modules import is_local
print(is_local("tool"), is_local("beside"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_setuptools_import_hooks_are_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    finder, tool = types.ModuleType("__editable___tool_finder"), types.ModuleType("tool")
    tool.__file__ = str(tmp_path / "tool" / "__init__.py")
    monkeypatch.setitem(sys.modules, "tool", tool)
    assert is_local("tool")
    finder.__dict__["MAPPING"] = {"tool": str(tmp_path / "tool")}
    monkeypatch.setitem(sys.modules, finder.__name__, finder)
    assert not is_local("tool")


@pytest.mark.parametrize("protocol", range(6))
def test_what_a_pickle_imports_is_found_in_every_protocol(protocol: int) -> None:
    value = [torch.nn.Linear, json.JSONDecoder, numpy.float32(1), torch.nn.Linear]
    found = referenced(pickle.dumps(value, protocol))
    assert {"torch.nn.modules.linear", "json.decoder"} <= found
    assert "numpy" in {name.partition(".")[0] for name in found}


def test_modules_that_are_imported_by_a_call_are_found() -> None:
    function = eval("lambda x: numpy.sum(json.loads(x))", {"numpy": numpy, "json": json})
    assert {"numpy", "json"} <= referenced(cloudpickle.dumps(function))
    assert {"numpy", "json"} <= referenced(dill.dumps(function, recurse=True))


def test_old_opcodes_are_understood() -> None:
    assert referenced(b"cos\nsystem\n.") == {"os"}
    assert referenced(b"(S'x'\niposix\nsystem\n.") == {"posix"}
    assert referenced(b"\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93.") == {"os"}


def test_the_standard_library_is_not_needed() -> None:
    assert needed(pickle.dumps([json.JSONDecoder, torch.nn.Linear, print])) == ("torch",)
