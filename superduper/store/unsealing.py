"""The one place in the project where a pickle is read or source is run: in a child process.

Everything is verified before: signatures, hashes, sizes, the version of Python, needed modules.
"""

import importlib.util
import io
import linecache
import operator
import pickle
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import bson

from superduper.errors import ArtifactRejected, InvalidInput
from superduper.fields.picklers import DEFINITION
from superduper.fields.sealing import Sealed
from superduper.fields.storages import MARK, Stored
from superduper.store.records import verify_artifact, verify_component

Payload = Mapping[str, Any]
Record = Mapping[str, Any]


def load(payload: Payload) -> dict[str, Any]:
    """The parts of a component, verified and unpickled: `object` and what belongs to it.

    `domain` has the tensors that a fit has kept of its training documents, None if there are none.

    `payload` is what `Registry.payload` made. Order: signature, hash, size, version of Python and
    bytecode, needed modules, and only then the pickle. Raises ArtifactRejected that says which of
    these failed, InvalidInput for a module that this process does not have.
    """
    keys = payload["public_keys"]
    version = verify_component(payload.get("component") or {}, keys)
    blob = verify_artifact(payload, keys, "code", version)
    weights = None
    if version["weights"] is not None:
        weights = verify_artifact(payload.get("weights") or {}, keys, "weights", version)
    domain = _domain(payload, keys, version)
    sealed = Sealed.from_dict(bson.decode(blob))
    fits = _fits_this_python(sealed)
    _check_modules(version, sealed)
    parts: dict[str, Any] = _read(sealed) if fits else _rebuild(version, sealed)
    if weights is not None:
        _load_weights(version, parts["object"], weights)
    return {**parts, "domain": domain}


def load_own(content: bytes) -> Any:
    """What this process's own parent has sealed for it, and left where nobody else can write."""
    return _read(Sealed.from_dict(bson.decode(content)))["object"]


def _fits_this_python(sealed: Sealed) -> bool:
    """Whether the pickle holds no bytecode, or bytecode of this Python.

    Other bytecode loads without an error, and crashes the process when it is called.
    """
    here = str(sys.implementation.cache_tag), importlib.util.MAGIC_NUMBER.hex()
    return sealed.format == "pickle" or (sealed.python_tag, sealed.magic) == here


def _check_modules(version: Record, sealed: Sealed) -> None:
    missing = [name for name in sealed.modules if not _is_there(name)]
    if missing:
        raise InvalidInput(
            f"{version['kind']} {version['name']!r} needs the module {missing[0]!r}, which the "
            f"worker does not have: pip install {' '.join(missing)} on the worker, or define what "
            "you use of it in your script"
        )


def _is_there(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _domain(payload: Payload, keys: Any, version: Record) -> dict[str, Any] | None:
    if version.get("domain") is None:
        return None
    from safetensors.torch import load as load_safetensors

    blob = verify_artifact(payload.get("domain") or {}, keys, "domain", version)
    tensors: dict[str, Any] = load_safetensors(blob)
    return tensors


# The same Python -------------------------------------------------------------------------------


def _read(sealed: Sealed) -> Any:
    stored = Stored(sealed.tensors)
    if sealed.format == "dill":
        import dill

        base: Any = dill.Unpickler
    elif sealed.format in ("pickle", "cloudpickle"):
        base = pickle.Unpickler
    else:
        raise ArtifactRejected(f"{sealed.format!r} is not a format that objects are sealed in")

    class Unpickler(base):  # type: ignore[misc]
        def persistent_load(self, reference: Any) -> Any:
            return _resolve(reference, stored, None)

    return Unpickler(io.BytesIO(sealed.code)).load()


def _resolve(reference: Any, stored: Stored, rebuilt: ModuleType | None) -> Any:
    """What a reference in the pickle stands for: a storage, or a definition of the source."""
    match reference:
        case (mark, name, dtype) if mark == MARK:
            return stored.storage(name, dtype)
        case (mark, str(name)) if mark == DEFINITION and rebuilt is not None:
            return operator.attrgetter(name)(rebuilt)
    raise ArtifactRejected("the sealed object refers to something that is not sealed with it")


# Another Python --------------------------------------------------------------------------------


def _rebuild(version: Record, sealed: Sealed) -> Any:
    """The parts, their classes and functions made anew from the kept source."""
    if sealed.portable is None or sealed.source is None:
        here = sys.implementation.cache_tag
        raise ArtifactRejected(
            f"{version['kind']} {version['name']!r} was sealed under {sealed.python_tag}, this "
            f"worker runs {here}: register it again from there, or run a worker under "
            f"{sealed.python_tag}. Rebuilding it from source needs classes and functions at the "
            "top of a file, and no lambdas"
        )
    stored = Stored(sealed.tensors)
    rebuilt = _run_source(sealed)

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, reference: Any) -> Any:
            return _resolve(reference, stored, rebuilt)

    return Unpickler(io.BytesIO(sealed.portable)).load()


def _run_source(sealed: Sealed) -> ModuleType:
    source = sealed.source or ""
    name = f"rebuilt_{len([each for each in sys.modules if each.startswith('rebuilt_')])}"
    module = sys.modules[name] = ModuleType(name)  # dataclasses look their module up
    file = f"<source of {sealed.type}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)
    return module


# Weights ---------------------------------------------------------------------------------------


def _load_weights(version: Record, model: Any, blob: bytes) -> None:
    from safetensors.torch import load as load_safetensors

    what = f"model {version['name']!r}, version {version['version']}"
    if not callable(getattr(model, "load_state_dict", None)):
        raise ArtifactRejected(f"{what}: a {type(model).__qualname__} takes no weights")
    try:
        model.load_state_dict(load_safetensors(blob), strict=True)
    except (RuntimeError, KeyError, TypeError) as error:
        raise ArtifactRejected(f"{what}: its weights do not fit its code: {error}") from error
