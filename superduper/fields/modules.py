"""Modules: which ones a worker can import by name, and which ones a pickle asks for."""

import functools
import pickletools
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# Ours and what reads pickles: every worker has them.
_OURS = {"superduper", "superduper_client", "superduper_server", "dill", "cloudpickle"}
_NOWHERE = {"builtins", "__builtin__", "__main__", "__runtime__"}
# How dill and cloudpickle put a module itself into a pickle: by a call with its name.
_IMPORTERS = {
    ("dill._dill", "_import_module"),
    ("cloudpickle.cloudpickle", "subimport"),
    ("importlib", "import_module"),
}


def is_local(name: str) -> bool:
    """Whether a loaded module is one that a process started elsewhere could not import.

    True for `__main__`, for modules beside the script or on PYTHONPATH, and for those made on the
    fly; false for the standard library and for what is installed, in editable mode too.
    """
    if name == "__main__":
        return True
    top = name.partition(".")[0]
    module = sys.modules.get(top)
    if module is None or top in _OURS or name not in sys.modules:
        return False
    return _is_local(module, top)


def local_modules() -> list[ModuleType]:
    """The loaded modules that no worker could import, `__main__` apart."""
    there = {name: module for name, module in sys.modules.copy().items() if name != "__main__"}
    # Only their tops count, and there are many fewer of these.
    local = {top for top in {name.partition(".")[0] for name in there} if is_local(top)}
    return [
        module
        for name, module in there.items()
        if name.partition(".")[0] in local and isinstance(module, ModuleType)
    ]


def _is_local(module: ModuleType, top: str) -> bool:
    # What a package makes on the fly inside itself is the package's: only its top counts.
    if getattr(getattr(module, "__spec__", None), "origin", None) in ("built-in", "frozen"):
        return False
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        path = Path(file)
        is_package = path.name.startswith("__init__.")
        return not _is_installed(top, path.parent.parent if is_package else path.parent)
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    if folders:  # a namespace package
        return not any(_is_installed(top, folder.parent) for folder in folders)
    return top not in sys.stdlib_module_names


def _is_installed(top: str, folder: Path) -> bool:
    """Whether what lies in a folder can be imported under its own name by every process."""
    installed = _installed_folders()
    if folder in installed or folder.resolve() in installed or _was_installed_into(folder):
        return True
    return any(folder in (place.parent, place.parent.resolve()) for place in _editable(top))


@functools.cache
def _was_installed_into(folder: Path) -> bool:
    """Whether pip put something there, as with `--target`: no place for the user's own modules."""
    return next(folder.glob("*.dist-info"), None) is not None


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    """Where every process of this installation finds modules, wherever it was started."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = {Path(sysconfig.get_path(name)) for name in names}
    found |= {folder / "lib-dynload" for folder in list(found)}
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    for folder in map(Path, [*site.getsitepackages(), *users]):
        found |= {folder, *_of_path_files(folder)}
    return tuple(sorted(found | {folder.resolve() for folder in found}))


def _of_path_files(folder: Path) -> Iterator[Path]:
    """Folders that `.pth` files add to the path: projects installed in editable mode."""
    for file in sorted(folder.glob("*.pth")):
        for line in file.read_text(errors="replace").splitlines():
            if line.strip() and not line.startswith(("#", "import ", "import\t")):
                yield folder / line.strip()


def _editable(top: str) -> Iterator[Path]:
    """Places of packages that setuptools installed in editable mode, through an import hook."""
    # A copy in one step: another thread may be importing.
    for name, module in sys.modules.copy().items():
        if not name.startswith("__editable___"):
            continue
        mapping = getattr(module, "MAPPING", None)
        if isinstance(mapping, dict) and top in mapping:
            yield Path(mapping[top])


# What a pickle asks for ------------------------------------------------------------------------


def referenced(code: bytes) -> set[str]:
    """The modules, by their whole names, that are imported when a pickle is read."""
    found: set[str] = set()
    memo: dict[int, object] = {}
    strings: list[str] = []
    last: object = None
    importing = False  # the last object on the stack is a function that imports what it is given
    for opcode, argument, _ in pickletools.genops(code):
        name = opcode.name
        if name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            memo[len(memo) if argument is None else int(argument)] = last
            continue
        if name in ("GLOBAL", "INST"):
            last = tuple(str(argument).split(" ", 1))
        elif name == "STACK_GLOBAL":
            last = tuple(strings[-2:])
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            last = memo.get(int(argument or 0))
        else:
            last = argument if isinstance(argument, str) else None
        if isinstance(last, tuple) and last:
            found.add(last[0])
        elif isinstance(last, str):
            strings.append(last)
            if importing:
                found.add(last)
        importing = last in _IMPORTERS
    return found


def needed(code: bytes) -> tuple[str, ...]:
    """The packages that must be installed where a pickle is read, by their top-level names.

    What is local is not among them where the pickle brings it along by value.
    """
    tops = {name.partition(".")[0] for name in referenced(code)}
    return tuple(sorted(tops - set(sys.stdlib_module_names) - _NOWHERE))
