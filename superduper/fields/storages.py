"""Tensors apart from the pickle: the memory behind them, as one safetensors file.

What is split off is the storage, not the tensor: tied weights, buffers, views and tensors that are
not contiguous come back as they were, sharing what they shared. A storage met twice is kept once.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from superduper.errors import ArtifactRejected, MissingExtra

MARK = "superduper.storage"
_PLAIN = {
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
}
"""Datatypes that every reader of safetensors knows; others are kept as bytes."""


class Storages:
    """Collects the storages of tensors while objects are pickled."""

    def __init__(self) -> None:
        self._torch = sys.modules.get("torch")
        self._names: dict[int, str] = {}
        self._kept: dict[str, tuple[Any, str | None]] = {}

    def name_of(self, value: Any) -> tuple[str, str, str | None] | None:
        """What stands in a pickle for a storage: mark, name and datatype; None for all else."""
        torch = self._torch
        if torch is None:
            return None
        if isinstance(value, torch.storage.TypedStorage):
            dtype = str(value.dtype).removeprefix("torch.")
            return MARK, self._keep(value._untyped_storage, dtype), dtype
        if isinstance(value, torch.UntypedStorage):
            return MARK, self._keep(value, None), None
        return None

    def _keep(self, storage: Any, dtype: str | None) -> str:
        name = self._names.setdefault(storage._cdata, str(len(self._names)))
        self._kept.setdefault(name, (storage, dtype))
        return name

    def blob(self, names: Iterable[str]) -> bytes | None:
        """These storages as a safetensors file; None if there are none."""
        tensors = {name: self._flat(*self._kept[name]) for name in sorted(set(names), key=int)}
        if not tensors:
            return None
        try:
            from safetensors.torch import save
        except ImportError as error:
            raise MissingExtra.of("torch", "sealing an object that holds tensors") from error
        return save(tensors)

    def _flat(self, storage: Any, dtype: str | None) -> Any:
        torch: Any = self._torch
        data = torch.empty(0, dtype=torch.uint8).set_(storage.cpu())
        if dtype in _PLAIN and len(data) % getattr(torch, dtype).itemsize == 0:
            return data.view(getattr(torch, dtype))
        return data


class Stored:
    """The storages of a safetensors file, for what stands for them in a pickle."""

    def __init__(self, blob: bytes | None) -> None:
        self._storages: Mapping[str, Any] = {} if blob is None else _read(blob)

    def storage(self, name: Any, dtype: Any) -> Any:
        """A storage, as the functions that rebuild tensors want it."""
        import torch

        if name not in self._storages or not (dtype is None or isinstance(dtype, str)):
            raise ArtifactRejected(f"the sealed object refers to tensor {name!r}, which is missing")
        storage = self._storages[name]
        if dtype is None:
            return storage
        kind = getattr(torch, dtype)
        typed: Any = torch.storage.TypedStorage
        return typed(wrap_storage=storage, dtype=kind, _internal=True)


def _read(blob: bytes) -> dict[str, Any]:
    from safetensors.torch import load

    # A copy each: the tensors may be views of one buffer, and models write into their weights.
    return {name: tensor.clone().untyped_storage() for name, tensor in load(blob).items()}
