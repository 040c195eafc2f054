"""BSON values as JSON and back: a safe part of MongoDB's extended JSON, and tensors.

Coming in, only dates, ids, numbers and plain bytes are made of `$` keys, never a regular
expression, code or a reference; going out, everything has a form. Numbers of BSON vectors go out
as a list, other tensors as `{dtype, shape, data}` with base64.
"""

import base64
import binascii
import datetime
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from bson import json_util
from bson.binary import UUID_SUBTYPE, VECTOR_SUBTYPE, Binary
from bson.code import Code
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId

from superduper.errors import InvalidInput
from superduper.fields import tensors

try:
    import orjson
except ImportError:  # the light client has none, and needs none
    orjson = None  # type: ignore[assignment]

MAX_DEPTH: Final = 64

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_INTEGER = re.compile(r"-?[0-9]{1,19}")
# Digits as 0 and all else but the point as blank: then a long integer is a blank and 19 times 0.
_SHAPES = bytes(
    ord("0") if chr(byte).isdecimal() else byte if byte == ord(".") else ord(" ")
    for byte in range(256)
)
_LONG_INTEGER = b" " + b"0" * 19
_OUT = json_util.JSONOptions(json_mode=json_util.JSONMode.RELAXED)


class _Refused(Exception):
    """Carries what is wrong up through the levels, each of which adds its key."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.keys: list[str] = []


# From JSON -----------------------------------------------------------------------------------


def from_json(value: Any) -> Any:
    """The BSON value of parsed JSON.

    Raises InvalidInput, with the dotted path, for `$` keys that are not known, numbers that are
    not finite or do not fit into 64 bits, lone surrogates, NUL in keys, damaged tensors, and
    what is nested too deep.
    """
    try:
        return _from(value, 0)
    except _Refused as refused:
        path = ".".join(reversed(refused.keys))[:200]
        raise InvalidInput(f"{path}: {refused}" if path else str(refused)) from refused.__cause__


def loads(data: bytes) -> Any:
    """The BSON value of JSON text; see `from_json`.

    Raises InvalidInput if it is not JSON.
    """
    try:
        value = orjson.loads(data) if orjson else _loads_slowly(data)
        if orjson and _has_long_integer(data):
            value = _loads_slowly(data)  # orjson makes a float of an integer beyond 64 bits
    except (ValueError, RecursionError) as error:
        text = getattr(error, "msg", None) or "it is nested too deep, or not UTF-8"
        raise InvalidInput(f"not valid JSON: {text:.100}") from error
    return from_json(value)


def _has_long_integer(data: bytes) -> bool:
    shape = data.translate(_SHAPES)
    return shape.startswith(_LONG_INTEGER[1:]) or _LONG_INTEGER in shape


def _loads_slowly(data: bytes) -> Any:
    return json.loads(data.decode(), parse_constant=_no_constant, parse_int=_integer_of)


def _no_constant(name: str) -> NoReturn:
    raise InvalidInput(f"{name} is not a JSON number")


def _integer_of(text: str) -> int:
    if not _INTEGER.fullmatch(text) or not _INT64_MIN <= int(text) <= _INT64_MAX:
        raise InvalidInput("an integer does not fit into 64 bits: send it as text")
    return int(text)


def _from(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return _integer(value)
    if isinstance(value, dict):
        return _from_object(value, depth + 1)
    if isinstance(value, list):
        return _from_list(value, depth + 1)
    if value is None or isinstance(value, bool):
        return value
    raise _Refused(f"a {type(value).__name__} is not a JSON value")


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Refused("the text holds half of a surrogate pair (invalid Unicode)") from None
    return value


def _number(value: float) -> float:
    if not math.isfinite(value):
        raise _Refused("NaN and Infinity are not JSON numbers: leave the field out, or send null")
    return value


def _integer(value: int) -> int:
    if not _INT64_MIN <= value <= _INT64_MAX:
        raise _Refused("the integer does not fit into 64 bits: send it as text")
    return value


def _from_list(values: list[Any], depth: int) -> list[Any]:
    _check_depth(depth)
    kinds = set(map(type, values))
    if kinds == {float} and math.isfinite(sum(map(abs, values))):  # what most long lists are
        return values
    if kinds == {int} and min(values) >= _INT64_MIN and max(values) <= _INT64_MAX:
        return values
    made = []
    for index, value in enumerate(values):
        try:
            made.append(_from(value, depth))
        except _Refused as refused:
            refused.keys.append(str(index))
            raise
    return made


def _from_object(value: dict[str, Any], depth: int) -> Any:
    _check_depth(depth)
    if any(key.startswith("$") for key in value):
        return _from_extended(value)
    if tensors.is_tensor_document(value, data=str):
        return _from_tensor(value)
    made = {}
    for key, item in value.items():
        try:
            if "\0" in key:
                raise _Refused("a key must not contain NUL")
            made[_text(key)] = _from(item, depth)
        except _Refused as refused:
            refused.keys.append(key[:40].encode(errors="replace").decode())
            raise
    return made


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _Refused(f"nested more than {MAX_DEPTH} levels deep")


def _from_tensor(value: dict[str, Any]) -> Any:
    """The stored form of a tensor: as the codec would have stored it."""
    if value.get("kind", "torch") not in ("torch", "numpy"):
        raise _Refused("a tensor's kind is 'torch' or 'numpy'")
    stored = {**value, "data": _base64(value["data"])}
    try:
        tensors.check_tensor_document(stored)
    except InvalidInput as error:
        raise _Refused(error.message) from error
    return tensors.as_stored(stored)


def _base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise _Refused("the data is not valid base64") from error


def _from_extended(value: dict[str, Any]) -> Any:
    key = next(key for key in value if key.startswith("$"))
    if len(value) != 1 or key not in _READERS:
        known = ", ".join(_READERS)
        name = key[:24].encode(errors="replace").decode()
        raise _Refused(f"unexpected key {name!r}: of keys with '$' there are {known}, each alone")
    try:
        return _READERS[key](value[key])
    except _Refused as refused:
        refused.keys.append(key)
        raise


def _read_id(value: Any) -> ObjectId:
    if not isinstance(value, str) or not ObjectId.is_valid(value):
        raise _Refused("an id has 24 hexadecimal digits")
    return ObjectId(value)


def _read_long(value: Any) -> int:
    if not isinstance(value, str) or not _INTEGER.fullmatch(value):
        raise _Refused("needs an integer of 64 bits, as text")
    return Int64(_integer(int(value)))


def _read_int(value: Any) -> int:
    return int(_read_long(value))


def _read_double(value: Any) -> float:
    try:
        return _number(float(value if isinstance(value, str) and len(value) < 400 else "?"))
    except ValueError:
        raise _Refused("needs a number, as text") from None


def _read_decimal(value: Any) -> Decimal128:
    try:
        return Decimal128(value if isinstance(value, str) and len(value) < 100 else "?")
    except (ArithmeticError, ValueError):
        raise _Refused("needs a decimal number, as text") from None


def _read_date(value: Any) -> datetime.datetime:
    if isinstance(value, dict) and value.keys() == {"$numberLong"}:
        value = int(_read_long(value["$numberLong"]))
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            moment = datetime.datetime.fromtimestamp(0, datetime.UTC)
            return (moment + datetime.timedelta(milliseconds=value)).replace(tzinfo=None)
        moment = datetime.datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    except (ValueError, TypeError, OverflowError):
        raise _Refused("needs a date such as '2026-01-31T12:00:00Z'") from None
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _read_binary(value: Any) -> Any:
    if not isinstance(value, dict) or value.keys() != {"base64", "subType"}:
        raise _Refused("needs {'base64': ..., 'subType': '00'}")
    subtype, data = _subtype(value["subType"]), _base64(value["base64"])
    if subtype == UUID_SUBTYPE and len(data) != 16:
        raise _Refused("a UUID has 16 bytes")
    binary = Binary(data, subtype)
    if subtype == VECTOR_SUBTYPE:
        try:
            tensors.read_vector(binary)
        except InvalidInput as error:
            raise _Refused(error.message) from error
    return binary if subtype else data


def _subtype(value: Any) -> int:
    text = value if isinstance(value, str) else ""
    number = int(text, 16) if re.fullmatch("[0-9a-fA-F]{1,2}", text) else value
    if number not in (0, UUID_SUBTYPE, VECTOR_SUBTYPE) or isinstance(number, bool):
        raise _Refused("the subType is '00' (bytes), '04' (UUID) or '09' (vector)")
    return int(number)


_READERS: dict[str, Callable[[Any], Any]] = {
    "$oid": _read_id,
    "$date": _read_date,
    "$binary": _read_binary,
    "$numberLong": _read_long,
    "$numberInt": _read_int,
    "$numberDouble": _read_double,
    "$numberDecimal": _read_decimal,
}
EXTENDED: Final = frozenset(_READERS)
"""The keys with `$` that come in, each alone."""


# To JSON -------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """A BSON value in words that JSON has; numbers that are not finite as `$numberDouble`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and not isinstance(value, Code):
        return str.__str__(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$numberDouble": _non_finite(value)}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, list | tuple):
        return _list_to_json(value)
    if isinstance(value, Mapping):
        return _object_to_json(value)
    if tensors.is_vector(value):
        return _vector_to_json(value)
    return json_util.default(value, _OUT)


def _vector_to_json(value: Binary) -> Any:
    try:
        return _list_to_json(tensors.vector_numbers(value))
    except InvalidInput:  # damaged by whoever wrote it: show the bytes that are there
        return json_util.default(value, _OUT)


def _non_finite(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def _list_to_json(values: list[Any] | tuple[Any, ...]) -> list[Any]:
    if set(map(type, values)) == {float} and math.isfinite(sum(map(abs, values))):
        return list(values)
    return [to_json(value) for value in values]


def _object_to_json(value: Mapping[str, Any]) -> dict[str, Any]:
    made = {key: to_json(item) for key, item in value.items()}
    if tensors.is_tensor_document(value):
        made["data"] = base64.b64encode(value["data"]).decode()
    return made


def dumps(value: Any) -> bytes:
    """A BSON value as JSON text; see `to_json`."""
    made = to_json(value)
    if orjson:
        return orjson.dumps(made)
    return json.dumps(made, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
