"""The one place in the project where a pickle is read: in a child process, after verification."""

import importlib.util
import io
import pickle
import sys
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import bson

from superduper.errors import ArtifactRejected, InvalidInput
from superduper.fields.sealing import TENSOR, Sealed
from superduper.store.signing import Purpose, verify

Payload = Mapping[str, Any]


def load(payload: Payload) -> dict[str, Any]:
    """The parts of a component, verified and unpickled: `object` and what belongs to it.

    `payload` is what `Registry.payload` made. Order: signature, hash, size, Python's version and
    bytecode, needed modules, and only then the pickle. Raises ArtifactRejected that says which of
    these failed, InvalidInput for a module that this process does not have.
    """
    record = payload["record"]
    blob = check(payload, payload["public_keys"], "code")
    _check_python(record)
    sealed = Sealed.from_dict(bson.decode(blob))
    _check_modules(record, sealed)
    parts: dict[str, Any] = _unpickle(sealed)
    if payload.get("weights") is not None:
        weights = check(payload["weights"], payload["public_keys"], "weights")
        _load_weights(parts["object"], weights)
    return parts


def check(signed: Payload, public_keys: Mapping[str, Mapping[str, Any]], purpose: Purpose) -> bytes:
    """The blob of a signed record, after signature, hash and size were checked in that order."""
    record, blob = signed["record"], bytes(signed["blob"])
    verify(record, signed["key"], bytes(signed["signature"]), public_keys, purpose)
    what = f"{record['kind']} {record['name']!r}"
    if sha256(blob).hexdigest() != record["sha256"]:
        raise ArtifactRejected(f"{what}: the stored bytes are not those that were signed")
    if len(blob) != record["size"]:
        raise ArtifactRejected(
            f"{what}: {len(blob)} bytes are stored, {record['size']} were signed"
        )
    return blob


def _check_python(record: Mapping[str, Any]) -> None:
    """Code of another Python loads without an error and then crashes the process: refuse it."""
    here = str(sys.implementation.cache_tag), importlib.util.MAGIC_NUMBER.hex()
    if (record["python_tag"], record["magic"]) != here:
        raise ArtifactRejected(
            f"{record['kind']} {record['name']!r} was sealed under {record['python_tag']}, and "
            f"this process runs {here[0]}: register it again from {here[0]}, or run a worker under "
            f"{record['python_tag']}; its source is kept with it, see show()"
        )


def _check_modules(record: Mapping[str, Any], sealed: Sealed) -> None:
    for name in sealed.modules:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise InvalidInput(
                f"{record['kind']} {record['name']!r} needs the module {name!r}, which the worker "
                f"does not have: install it there, or define what you use of it in your script"
            )


def _unpickle(sealed: Sealed) -> Any:
    tensors = _tensors(sealed.tensors)
    if sealed.format == "dill":
        import dill

        base: Any = dill.Unpickler
    elif sealed.format == "cloudpickle":
        base = pickle.Unpickler
    else:
        raise ArtifactRejected(f"{sealed.format!r} is not a format that objects are sealed in")

    class Unpickler(base):  # type: ignore[misc]
        def persistent_load(self, name: Any) -> Any:
            return tensors[name]

    return Unpickler(io.BytesIO(sealed.code)).load()


class _Tensors(dict[Any, Any]):
    """Tensors by what stands for them in the pickle; the same name is the same tensor."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        super().__init__()
        self._stored = stored

    def __missing__(self, name: Any) -> Any:
        import torch

        mark, key, is_parameter, needs_gradient = name
        if mark != TENSOR:
            raise ArtifactRejected(f"the sealed object refers to something unknown: {mark!r}")
        tensor = self._stored[key]
        if is_parameter:
            tensor = torch.nn.Parameter(tensor, requires_grad=needs_gradient)
        else:
            tensor.requires_grad_(needs_gradient)
        self[name] = tensor
        return tensor


def _tensors(blob: bytes | None) -> _Tensors:
    if blob is None:
        return _Tensors({})
    from safetensors.torch import load as load_safetensors

    return _Tensors(load_safetensors(blob))


def _load_weights(model: Any, blob: bytes) -> None:
    from safetensors.torch import load as load_safetensors

    model.load_state_dict(load_safetensors(blob), strict=True)
