"""Rich values in documents: what a user puts in becomes BSON, and comes out as it went in.

Tensors, arrays, numpy scalars and Pillow images are known; `add_encoder` teaches more types.
Everything that BSON has itself passes untouched. Errors name the dotted path to the value.
"""

import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import bson
from bson.binary import Binary
from bson.code import Code
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from bson.regex import Regex
from bson.timestamp import Timestamp

from superduper.errors import InvalidInput, SuperduperError, TooLarge, UserCodeError
from superduper.fields import images, tensors
from superduper.fields.tensors import Arrays

MAX_DOCUMENT_BYTES: Final = 16 * 1024 * 1024
MAX_DEPTH: Final = 100
"""How deep MongoDB lets documents and arrays be nested."""

_ID_BYTES = 17  # what pymongo adds to a document without `_id`
_BSON_ERRORS = (bson.errors.BSONError, UnicodeError, OverflowError, ValueError)
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1

_NUMBERLESS: frozenset[type] = frozenset(
    {str, bool, float, type(None), bytes, ObjectId, datetime.datetime, Decimal128, Regex, Timestamp}
)
_NATIVE = (
    *_NUMBERLESS,
    Code,
    DBRef,
    DatetimeMS,
    MaxKey,
    MinKey,
    RawBSONDocument,
    re.Pattern,
)
# What decoding never looks into.
_FINAL: frozenset[type] = _NUMBERLESS | {int, Int64}

_HINTS: dict[str, str] = {
    "date": "use datetime.datetime",
    "Decimal": "use bson.Decimal128(value)",
    "UUID": "use bson.Binary.from_uuid(value)",
    "complex": "store its real and imaginary part",
    "set": "use a list",
    "frozenset": "use a list",
    "DataFrame": "insert its rows: insert_many(frame.to_dict('records'))",
    "Series": "use .tolist() or .to_numpy()",
}


_Check = Callable[[Any], None]
"""Looks at a key."""


class _Refused(Exception):
    """Carries an error up through the levels of a document, each of which adds its key."""

    def __init__(self, error: SuperduperError) -> None:
        super().__init__(error.message)
        self.error = error
        self.keys: list[str] = []


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except _Refused as refused:
        error = refused.error
        if not refused.keys:
            raise error from error.__cause__
        path = ".".join(reversed(refused.keys))
        raise type(error)(f"{path[:200]}: {error.message}") from error.__cause__


@dataclass(frozen=True)
class _Encoder:
    name: str
    type: type
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


@dataclass(frozen=True)
class _Encoders:
    """The encoders of this process, found by the type of a value or by the name in a document."""

    of_type: dict[type, _Encoder] = field(default_factory=dict)
    of_name: dict[str, _Encoder] = field(default_factory=dict)


_ENCODERS = _Encoders()


def add_encoder(
    name: str,
    type: type,
    encode: Callable[[Any], Any],
    decode: Callable[[Any], Any],
) -> None:
    """Teach this process a type: `encode` makes of a value something that can be stored.

    It is stored as `{"encoder": name, "data": ...}`; `decode` makes a value of the data again. A
    process that does not know the name leaves such a document as it is.
    """
    former = _ENCODERS.of_name.get(name)
    if former is not None:
        _ENCODERS.of_type.pop(former.type, None)
    encoder = _Encoder(name, type, encode, decode)
    _ENCODERS.of_name[name] = encoder
    _ENCODERS.of_type[type] = encoder


def _call(encoder: _Encoder, action: Callable[[Any], Any], value: Any) -> Any:
    try:
        return action(value)
    except Exception as error:  # a user's function may raise anything
        text = f"the encoder {encoder.name!r} raised {type(error).__name__}: {error!s:.200}"
        raise _Refused(UserCodeError(text)) from error


# Encoding ------------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """A value as BSON has it. Keys may start with `$`, for it may be a filter or an update.

    Raises InvalidInput, with the dotted path, for what has no place in a document.
    """
    with _named_errors():
        return _encode(value, 0, _check_name)


def encode_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document as BSON has it.

    Raises InvalidInput, with the dotted path, for keys and values that have no place in a
    document, and TooLarge for a document that MongoDB would not take.
    """
    if not isinstance(document, Mapping):
        raise InvalidInput(f"a document must be a dict, not a {type(document).__name__}")
    with _named_errors():
        encoded = _encode_mapping(document, 0, _check_key)
    _check_size(encoded)
    return encoded


def _check_size(document: dict[str, Any]) -> None:
    try:
        size = len(bson.encode(document))
    except _BSON_ERRORS as error:
        path = ".".join(_culprit(document))[:200]
        raise InvalidInput(f"{path}: cannot be stored: {error!s:.200}") from error
    if "_id" not in document:
        size += _ID_BYTES
    if size > MAX_DOCUMENT_BYTES:
        raise TooLarge(
            f"the document has {size:,} bytes and MongoDB takes {MAX_DOCUMENT_BYTES:,}: "
            "make it smaller, or store the large field elsewhere"
        )


def _culprit(document: Mapping[str, Any]) -> list[str]:
    """The keys that lead to the value that cannot be encoded."""
    for key, value in document.items():
        try:
            bson.encode({key: value})
        except _BSON_ERRORS:
            if isinstance(value, list):
                value = {str(index): item for index, item in enumerate(value)}
            return [key, *(_culprit(value) if isinstance(value, dict) else ())]
    return []


def _encode(value: Any, depth: int, check: _Check) -> Any:
    kind = type(value)
    if kind in _NUMBERLESS:
        return value
    if kind is int:
        return _checked(value)
    if kind is dict:
        return _encode_mapping(value, depth, check)
    if kind is list or kind is tuple:
        return _encode_list(value, depth, check)
    return _encode_rich(value, depth, check)


def _checked(value: int) -> int:
    if not _INT64_MIN <= value <= _INT64_MAX:
        raise _Refused(InvalidInput("the integer does not fit into 64 bits: store it as text"))
    return value


def _encode_mapping(document: Mapping[Any, Any], depth: int, check: _Check) -> dict[str, Any]:
    _check_depth(depth)
    encoded = {}
    for key, value in document.items():
        if type(key) is not str or key[:1] == "$" or "\0" in key:
            check(key)
        try:
            encoded[key] = _encode(value, depth + 1, check)
        except _Refused as refused:
            refused.keys.append(key)
            raise
    return encoded


def _encode_list(values: Sequence[Any], depth: int, check: _Check) -> list[Any]:
    _check_depth(depth)
    kinds = set(map(type, values))
    if kinds <= _NUMBERLESS:
        return list(values)
    if kinds == {int} and min(values) >= _INT64_MIN and max(values) <= _INT64_MAX:
        return list(values)
    encoded = []
    for index, value in enumerate(values):
        try:
            encoded.append(_encode(value, depth + 1, check))
        except _Refused as refused:
            refused.keys.append(str(index))
            raise
    return encoded


def _check_depth(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise _Refused(InvalidInput(f"nested more than {MAX_DEPTH} levels deep"))


def _check_name(key: Any) -> None:
    if not isinstance(key, str):
        raise _Refused(
            InvalidInput(f"a field's name must be text, not {type(key).__name__} ({key!r:.40})")
        )
    if "\0" in key:
        raise _Refused(InvalidInput(f"a field's name must not contain NUL: {key[:40]!r}"))


def _check_key(key: Any) -> None:
    _check_name(key)
    if key.startswith("$"):
        raise _Refused(InvalidInput(f"a field's name must not start with '$': {key[:40]!r}"))


def _encode_rich(value: Any, depth: int, check: _Check) -> Any:
    encoder = _encoder_of(value)
    if encoder is not None:
        data = _call(encoder, encoder.encode, value)
        return {"encoder": encoder.name, "data": _encode(data, depth + 1, check)}
    try:
        if tensors.is_array(value):
            return tensors.encode_array(value)
        if tensors.is_scalar(value):
            return _encode(tensors.encode_scalar(value), depth, check)
        if images.is_image(value):
            return images.encode_image(value)
    except SuperduperError as error:
        raise _Refused(error) from error.__cause__
    if isinstance(value, int):
        return _checked(value)
    if isinstance(value, _NATIVE):
        return value
    if isinstance(value, Mapping):
        return _encode_mapping(value, depth, check)
    if isinstance(value, (list, tuple)):
        return _encode_list(value, depth, check)
    raise _Refused(InvalidInput(_unknown(type(value))))


def _encoder_of(value: Any) -> _Encoder | None:
    if not _ENCODERS.of_type:
        return None
    found = (_ENCODERS.of_type.get(base) for base in type(value).__mro__)
    return next((encoder for encoder in found if encoder is not None), None)


def _unknown(kind: type) -> str:
    hint = _HINTS.get(
        kind.__name__, "convert it to numbers, text, lists or dicts, or register an encoder for it"
    )
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"a value of type {name} cannot be stored: {hint}"


# Decoding ------------------------------------------------------------------------------------


def decode(value: Any, arrays: Arrays = "auto") -> Any:
    """What was put in, from what is stored.

    `arrays="auto"` makes torch tensors where this process uses torch, else numpy arrays, but
    what was stored as numpy or with several dimensions as torch comes back as that. Lists and
    bytes stay as they are. Raises InvalidInput, with the dotted path, for damaged tensors.
    """
    with _named_errors():
        return _decode(value, arrays, given=False)


def decode_document(document: Mapping[str, Any], arrays: Arrays = "auto") -> dict[str, Any]:
    """What was put in, from a stored document; see `decode`."""
    with _named_errors():
        return _decode_mapping(document, arrays, given=False)


def decode_input(value: Any, arrays: Arrays = "auto") -> Any:
    """What a model is given for a stored value, so that data stored by others works as it is.

    Beside what `decode` does, lists of numbers and the bytes of .npy files become arrays, and the
    bytes of PNG and JPEG files become Pillow images.
    """
    with _named_errors():
        return _decode(value, arrays, given=True)


def _decode(value: Any, arrays: Arrays, given: bool) -> Any:
    kind = type(value)
    if kind in _FINAL and not (given and kind is bytes):
        return value
    try:
        if kind is dict:
            return _decode_document(value, arrays, given)
        if kind is list:
            return _decode_list(value, arrays, given)
        if isinstance(value, bytes):
            return _decode_bytes(value, arrays, given)
    except SuperduperError as error:
        raise _Refused(error) from error.__cause__
    return _decode_mapping(value, arrays, given) if isinstance(value, Mapping) else value


def _decode_document(value: dict[str, Any], arrays: Arrays, given: bool) -> Any:
    if "data" in value:
        if tensors.is_tensor_document(value):
            return tensors.decode_tensor_document(value, arrays)
        if images.is_image_document(value):
            return images.decode_image_document(value, needed=given)
        if value.keys() == {"encoder", "data"} and value["encoder"] in _ENCODERS.of_name:
            encoder = _ENCODERS.of_name[value["encoder"]]
            return _call(encoder, encoder.decode, _decode(value["data"], arrays, given=False))
    return _decode_mapping(value, arrays, given)


def _decode_mapping(value: Mapping[str, Any], arrays: Arrays, given: bool) -> dict[str, Any]:
    decoded = {}
    for key, item in value.items():
        try:
            decoded[key] = _decode(item, arrays, given)
        except _Refused as refused:
            refused.keys.append(key)
            raise
    return decoded


def _decode_list(values: list[Any], arrays: Arrays, given: bool) -> Any:
    if given and tensors.is_numeric_list(values):
        return tensors.array_of_list(values, arrays)
    if not given and _FINAL.issuperset(map(type, values)):
        return values
    decoded = []
    for index, item in enumerate(values):
        try:
            decoded.append(_decode(item, arrays, given))
        except _Refused as refused:
            refused.keys.append(str(index))
            raise
    return decoded


def _decode_bytes(value: bytes, arrays: Arrays, given: bool) -> Any:
    if isinstance(value, Binary) and value.subtype != 0:
        return tensors.decode_vector(value, arrays) if tensors.is_vector(value) else value
    if not given:
        return value
    if value.startswith(tensors.NPY_MAGIC):
        return tensors.array_of_npy(value, arrays)
    if images.is_image_bytes(value):
        return images.open_image(value)
    return value
