"""Seal an object: code and state as a pickle, its tensors apart as safetensors.

`dill` comes first (with `recurse`, or a function from a script would lose its module's globals);
`cloudpickle` where dill fails, and for what is defined in a module beside the script, which no
worker could import. Nothing here reads a pickle: that is `superduper.store.unsealing`.
"""

import functools
import importlib.util
import inspect
import io
import pickle
import pickletools
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from superduper.errors import InvalidInput, TooLarge

MAX_CODE_BYTES = 64 << 20
MAX_DEPTH = 6
TENSOR = "superduper.tensor"


@dataclass(frozen=True)
class Sealed:
    """A sealed object, and what is needed to know whether it can be loaded somewhere."""

    code: bytes
    tensors: bytes | None
    format: str
    python_tag: str
    magic: str
    dill_version: str
    torch_version: str | None
    source: str | None
    type: str
    modules: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain BSON values."""
        return {**asdict(self), "modules": list(self.modules)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Sealed":
        """From plain BSON values.

        Raises InvalidInput if they are not those of a sealed object.
        """
        try:
            fields = {name: document[name] for name in cls.__dataclass_fields__}
            code, tensors = bytes(fields["code"]), fields["tensors"]
            tensors = None if tensors is None else bytes(tensors)
            modules = tuple(str(name) for name in fields["modules"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"this is not a sealed object: {error}") from error
        return cls(**{**fields, "code": code, "tensors": tensors, "modules": modules})


def seal(value: Mapping[str, Any]) -> Sealed:
    """Seal the parts of a component: `object`, and for a model `preprocess` and `postprocess`.

    Raises InvalidInput that names the attribute which cannot be sealed, TooLarge above 64 MiB of
    code and state (tensors not counted).
    """
    parts = dict(value)
    code, form, tensors = _pickled(parts)
    if len(code) > MAX_CODE_BYTES:
        raise TooLarge(
            f"the object's code and state take {len(code) >> 20} MiB, more than "
            f"{MAX_CODE_BYTES >> 20}: keep data out of it"
        )
    torch = sys.modules.get("torch")
    return Sealed(
        code=code,
        tensors=tensors,
        format=form,
        python_tag=str(sys.implementation.cache_tag),
        magic=importlib.util.MAGIC_NUMBER.hex(),
        dill_version=_version_of("dill"),
        torch_version=str(torch.__version__) if torch is not None else None,
        source=source_of(parts.get("object")),
        type=_type_name(parts.get("object")),
        modules=tuple(sorted(_needed_modules(code, form))),
    )


def _version_of(module: str) -> str:
    return str(getattr(importlib.import_module(module), "__version__", ""))


# Pickling --------------------------------------------------------------------------------------


class _Tensors:
    """Collects tensors while an object is pickled; a tensor met twice is kept once."""

    def __init__(self) -> None:
        self._torch = sys.modules.get("torch")
        self._names: dict[int, str] = {}
        self._kept: list[Any] = []

    def name_of(self, value: Any) -> tuple[str, str, bool, bool] | None:
        """What stands in the pickle for a tensor; None for everything else."""
        torch = self._torch
        if torch is None or type(value) not in (torch.Tensor, torch.nn.Parameter):
            return None
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            return None
        name = self._names.setdefault(id(value), str(len(self._kept)))
        if int(name) == len(self._kept):
            self._kept.append(value)
        return TENSOR, name, type(value) is torch.nn.Parameter, bool(value.requires_grad)

    def blob(self) -> bytes | None:
        """All of them as one safetensors file; None if there are none."""
        if not self._kept:
            return None
        from safetensors.torch import save

        return save(
            {
                str(number): tensor.detach().cpu().contiguous().clone()
                for number, tensor in enumerate(self._kept)
            }
        )


def _pickled(parts: dict[str, Any]) -> tuple[bytes, str, bytes | None]:
    """The pickle, the library that made it, and the tensors."""
    try:
        tensors = _Tensors()
        code = _dill(parts, tensors)
        named = referenced_modules(code, whole=True)
        if "__main__" not in named and not any(is_local(name) for name in named):
            return code, "dill", tensors.blob()
    except _CANNOT:
        pass  # cloudpickle handles some of what dill does not; its own failure is reported
    try:
        tensors = _Tensors()
        return _cloudpickle(parts, tensors), "cloudpickle", tensors.blob()
    except _CANNOT as error:
        raise InvalidInput(_explain(parts, error)) from error


# What picklers raise for objects that they cannot take; user code's __reduce__ may raise anything.
_CANNOT = (Exception,)


def _dill(parts: Any, tensors: _Tensors) -> bytes:
    import dill

    class Pickler(dill.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> Any:
            return tensors.name_of(value)

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # dill only warns when it has written something that cannot be read elsewhere.
        warnings.simplefilter("error", dill.PicklingWarning)
        Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL, recurse=True).dump(parts)
    return buffer.getvalue()


def _cloudpickle(parts: Any, tensors: _Tensors) -> bytes:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> Any:
            return tensors.name_of(value)

    buffer = io.BytesIO()
    by_value = [module for module in list(sys.modules.values()) if _is_local_module(module)]
    for module in by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(parts)
    finally:
        for module in by_value:
            cloudpickle.unregister_pickle_by_value(module)
    return buffer.getvalue()


def _explain(parts: Mapping[str, Any], error: Exception) -> str:
    name, culprit = _culprit(parts)
    kind = type(culprit)
    return (
        f"{name} cannot be sealed: {kind.__module__}.{kind.__qualname__} "
        f"({str(error)[:200]}); make it when it is needed, or leave it out in __getstate__"
    )


def _culprit(parts: Mapping[str, Any]) -> tuple[str, Any]:
    """The path to the innermost attribute that cannot be pickled, and its value."""
    name, value = next((n, v) for n, v in parts.items() if not _picklable(v))
    path = type(value).__qualname__ if name == "object" else name
    for _ in range(MAX_DEPTH):
        inner = next(((n, v) for n, v in _inside(value) if not _picklable(v)), None)
        if inner is None:
            break
        path, value = f"{path}.{inner[0]}", inner[1]
    return path, value


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), each) for key, each in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(index), each) for index, each in enumerate(value))
    elif inspect.isfunction(value):
        yield from inspect.getclosurevars(value).nonlocals.items()
        yield from inspect.getclosurevars(value).globals.items()
    else:
        yield from getattr(value, "__dict__", {}).items()


def _picklable(value: Any) -> bool:
    try:
        _cloudpickle(value, _Tensors())
    except _CANNOT:
        return False
    return True


# Modules ---------------------------------------------------------------------------------------


def referenced_modules(code: bytes, whole: bool = False) -> set[str]:
    """The modules that a pickle imports when it is read; their top-level names, or whole names."""
    found, strings = set[str](), list[str]()
    memo: dict[int, str | None] = {}
    last: str | None = None
    for opcode, argument, _ in pickletools.genops(code):
        name = opcode.name
        if name == "GLOBAL":
            found.add(str(argument).split(" ")[0])
        elif name == "STACK_GLOBAL":
            found.add(strings[-2])
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else int(argument)] = last
            continue
        last = memo.get(argument or 0) if name in ("BINGET", "LONG_BINGET") else None
        if isinstance(argument, str) and "UNICODE" in name:
            last = argument
        if last is not None:
            strings.append(last)
    # dill also imports modules by name, through a function of its own.
    found |= {text for text in strings if text in sys.modules and is_local(text)}
    return found if whole else {name.split(".")[0] for name in found}


def _needed_modules(code: bytes, form: str) -> set[str]:
    """The modules that a loading process must have; cloudpickle brings the local ones along."""
    names = referenced_modules(code)
    return names - {name for name in names if is_local(name)} if form == "cloudpickle" else names


def is_local(name: str) -> bool:
    """Whether a module is one that no worker could import: beside the script, or in a notebook."""
    module = sys.modules.get(name)
    return module is not None and _is_local_module(module)


def _is_local_module(module: ModuleType) -> bool:
    name, file = getattr(module, "__name__", None), getattr(module, "__file__", None)
    if not isinstance(name, str) or not isinstance(file, str) or name == "__main__":
        return False
    relative = Path(*name.split("."))
    found = Path(file)
    if found.suffix != ".py":
        return False
    here = relative / "__init__.py" if found.name == "__init__.py" else relative.with_suffix(".py")
    return not any((entry / here) == found for entry in _workers_path())


@functools.cache
def _workers_path() -> tuple[Path, ...]:
    """Where a process that was started elsewhere finds modules: without the script's folder."""
    command = [sys.executable, "-P", "-E", "-c", "import sys; print('\\n'.join(sys.path))"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(Path(line) for line in output.splitlines() if line)


# Source ----------------------------------------------------------------------------------------


def source_of(value: Any) -> str | None:
    """The text of an object's function or class where it can be had: for people to read."""
    subject = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    if getattr(subject, "__module__", None) == "builtins":
        return None
    try:
        return inspect.getsource(subject)
    except (OSError, TypeError):  # typed at a prompt, or not written in Python
        return None


def _type_name(value: Any) -> str:
    subject = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    return f"{getattr(subject, '__module__', '')}.{getattr(subject, '__qualname__', subject)}"
