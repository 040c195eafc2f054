"""Seal an object: code and state as a pickle, tensors apart as safetensors, source text beside.

Nothing here reads a pickle: that is `superduper.store.unsealing`. The same object sealed twice
gives the same bytes, so that the same content is the same version.
"""

import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from superduper.errors import InvalidInput, TooLarge
from superduper.fields.blame import path_to, type_name
from superduper.fields.modules import needed
from superduper.fields.picklers import Pickled, Refused, Unpicklable, by_value, plain
from superduper.fields.source import Source, definitions_in, source_of
from superduper.fields.storages import Storages

MAX_CODE_BYTES = 256 << 20
MAX_PORTABLE_BYTES = 16 << 20
_TYPES: dict[str, type | tuple[type, ...]] = {
    "code": bytes,
    "tensors": (bytes, types.NoneType),
    "portable": (bytes, types.NoneType),
    "torch_version": (str, types.NoneType),
    "source": (str, types.NoneType),
}


@dataclass(frozen=True)
class Sealed:
    """A sealed object, and what is needed to know whether it can be loaded somewhere.

    `portable` is a second pickle without bytecode, for other versions of Python: it names the
    user's classes and functions, which `source` makes anew.
    """

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
    portable: bytes | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain BSON values."""
        return {**asdict(self), "modules": list(self.modules)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Sealed":
        """From plain BSON values.

        Raises InvalidInput if they are not those of a sealed object.
        """
        fields = {name: document.get(name) for name in cls.__dataclass_fields__}
        modules = fields.pop("modules")
        for name, value in fields.items():
            if not isinstance(value, _TYPES.get(name, str)):
                raise InvalidInput(
                    f"this is not a sealed object: {name!r} is a {type(value).__name__}"
                )
        if not isinstance(modules, list | tuple) or not all(isinstance(m, str) for m in modules):
            raise InvalidInput("this is not a sealed object: 'modules' is no list of names")
        return cls(**fields, modules=tuple(modules))  # type: ignore[arg-type]


def seal(value: Mapping[str, Any]) -> Sealed:
    """Seal the parts of a component: `object`, and for a model `preprocess` and `postprocess`.

    Raises InvalidInput that names the attribute which cannot be sealed and says what to do,
    TooLarge above 256 MiB of code and state (tensors not counted).
    """
    parts = dict(value)
    storages = Storages()
    pickled, portable = _pickled(parts, storages)
    source = source_of(portable.definitions if portable is not None else definitions_in(parts))
    if portable is not None and not _stands_alone(portable, source):
        portable = None
    used = pickled.storages | (portable.storages if portable is not None else frozenset())
    _check_size(pickled.code)
    torch = sys.modules.get("torch")
    return Sealed(
        code=pickled.code,
        tensors=storages.blob(used),
        format=pickled.format,
        python_tag=str(sys.implementation.cache_tag),
        magic=importlib.util.MAGIC_NUMBER.hex(),
        dill_version=importlib.metadata.version("dill"),
        torch_version=str(torch.__version__) if torch is not None else None,
        source=source.text if source is not None else None,
        type=_named(parts.get("object")),
        modules=needed(pickled.code),
        portable=portable.code if portable is not None else None,
    )


def _pickled(parts: dict[str, Any], storages: Storages) -> tuple[Pickled, Pickled | None]:
    """What will be read where the Python is the same, and what elsewhere, if that differs."""
    try:
        portable = plain(parts, storages)
        if portable is not None and not portable.definitions:
            return portable, None
        return by_value(parts, storages), portable
    except Refused as error:
        raise InvalidInput(_sentence(parts, error.value, error.hint)) from error
    except Unpicklable as error:
        hint = f"{error!s:.200}; make it when it is needed, or leave it out in __getstate__"
        raise InvalidInput(_sentence(parts, error.value, hint)) from error


def _sentence(parts: Mapping[str, Any], culprit: object, advice: str) -> str:
    path = path_to(parts, culprit)
    if path is None:  # made while pickling, by a __reduce__ or __getstate__
        path = f"{_named(parts.get('object'))}: something inside it"
    return f"{path} ({type_name(culprit)}) cannot be sealed: {advice}"


def _stands_alone(portable: Pickled, source: Source | None) -> bool:
    small = len(portable.code) <= MAX_PORTABLE_BYTES
    return small and source is not None and source.complete


def _check_size(code: bytes) -> None:
    if len(code) > MAX_CODE_BYTES:
        raise TooLarge(
            f"the object's code and state take {len(code) >> 20} MiB, more than "
            f"{MAX_CODE_BYTES >> 20}: keep data out of it (tensors of torch are not counted)"
        )


def _named(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    module = getattr(named, "__module__", None)
    return f"{module}.{named.__qualname__}" if module else str(named.__qualname__)
