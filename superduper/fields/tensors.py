"""Arrays in documents: BSON vectors for 1-D float32, int8 and bool, else `{dtype, shape, data}`.

Neither torch nor numpy is imported to encode: a value can only be a tensor if its library is
loaded. The bytes are little-endian and in C order.
"""

import importlib.util
import math
import struct
import sys
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from typing import Any, Literal

from bson.binary import VECTOR_SUBTYPE, Binary
from bson.int64 import Int64

from superduper.errors import InvalidInput, MissingExtra

Arrays = Literal["auto", "torch", "numpy"]

ITEM_SIZES: dict[str, int] = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""The datatypes that may stand in a document, with their bytes per element."""

_SCALARS = ITEM_SIZES.keys() - {"complex64", "complex128"}
MAX_DIMENSIONS = 32
NPY_MAGIC = b"\x93NUMPY"
_TENSOR_KEYS = {"dtype", "shape", "data"}

# The first byte of a BSON vector. The second: how many bits of the last byte are unused.
_VECTOR_TYPES = {0x03: "int8", 0x27: "float32", 0x10: "bool"}
_HEADERS = {name: code for code, name in _VECTOR_TYPES.items()}
_DIGITS = bytes.maketrans(b"\0\1", b"01")


def loaded(module: str) -> Any:
    """A module if this process has imported it, else None."""
    return sys.modules.get(module)


def load(module: str) -> Any:
    """A module, imported now if it is installed, else None."""
    return sys.modules.get(module) or (importlib.import_module(module) if _found(module) else None)


@cache  # a search of the whole path takes longer than decoding a value
def _found(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _numpy(purpose: str) -> Any:
    numpy = load("numpy")
    if numpy is None:
        raise MissingExtra.of("torch", purpose)
    return numpy


# Encoding ------------------------------------------------------------------------------------


def is_array(value: Any) -> bool:
    """Whether a value is a torch tensor or a numpy array."""
    torch, numpy = loaded("torch"), loaded("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        return True
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_scalar(value: Any) -> bool:
    """Whether a value is a numpy scalar."""
    numpy = loaded("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def encode_scalar(value: Any) -> Any:
    """A numpy scalar as a Python number, text or bytes.

    Raises InvalidInput for those that have no equal in BSON, datetime64 among them.
    """
    if value.dtype.kind not in "SU" and value.dtype.name not in _SCALARS:
        raise InvalidInput(
            f"a numpy {value.dtype.name} cannot be stored: convert it to a Python value first"
        )
    return value.item()


def encode_array(value: Any) -> Any:
    """A tensor or array as a BSON vector, or as `{dtype, shape, data, kind}`.

    Raises InvalidInput for datatypes and layouts that have no plain bytes.
    """
    torch = loaded("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _encode_tensor(value)
    return _encode_numpy(value, value.dtype.name, "numpy")


def _encode_tensor(tensor: Any) -> Any:
    torch = loaded("torch")
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in ITEM_SIZES or tensor.layout != torch.strided or tensor.is_nested:
        raise InvalidInput(
            f"a {tensor.layout} tensor of {tensor.dtype} cannot be stored: "
            "make it a dense tensor of an ordinary datatype (.to_dense(), .to(torch.float32))"
        )
    if tensor.device.type == "meta":
        raise InvalidInput("a tensor on the meta device has no values to store")
    _numpy("storing a torch tensor")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    if name == "bfloat16":  # numpy has no bfloat16: look at the same bytes as integers
        plain = plain.view(torch.int16)
    return _encode_numpy(plain.numpy(), name, "torch")


def _encode_numpy(array: Any, name: str, kind: str) -> Any:
    numpy = loaded("numpy")
    if name not in ITEM_SIZES:
        raise InvalidInput(
            f"a numpy array of datatype {name!r} cannot be stored: convert it to numbers "
            "(.astype) or to lists (.tolist())"
        )
    if isinstance(array, numpy.ma.MaskedArray):
        raise InvalidInput("a masked array cannot be stored: fill it first (.filled(value))")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.ndim == 1 and name in _HEADERS:
        return _vector(name, array.tobytes())
    return {
        "dtype": name,
        "shape": list(array.shape),
        "data": array.tobytes(),
        "kind": kind,
    }


def _vector(name: str, data: bytes) -> Binary:
    """A BSON vector of the elements' bytes; truth values are packed, eight in a byte."""
    padding = 0
    if name == "bool" and data:
        padding = -len(data) % 8
        digits = data.translate(_DIGITS) + b"0" * padding
        data = int(digits, 2).to_bytes(len(digits) // 8, "big")
    return Binary(bytes((_HEADERS[name], padding)) + data, VECTOR_SUBTYPE)


def as_stored(value: dict[str, Any]) -> Any:
    """What encoding would have made of the tensor of a checked document: a vector where it can."""
    if len(value["shape"]) == 1 and value["dtype"] in _HEADERS:
        return _vector(value["dtype"], value["data"])
    return value


# Decoding ------------------------------------------------------------------------------------


def is_vector(value: Any) -> bool:
    """Whether a value is a BSON vector."""
    return isinstance(value, Binary) and value.subtype == VECTOR_SUBTYPE


def is_tensor_document(value: Mapping[str, Any], data: type = bytes) -> bool:
    """Whether a document is a stored tensor; its content is checked by `check_tensor_document`."""
    return (
        "dtype" in value
        and value.keys() - {"kind"} == _TENSOR_KEYS
        and isinstance(value["dtype"], str)
        and isinstance(value["shape"], list)
        and isinstance(value["data"], data)
    )


def check_tensor_document(value: Mapping[str, Any]) -> None:
    """Raise InvalidInput if a stored tensor's datatype is unknown or its bytes do not fit."""
    _check_tensor(value["dtype"], value["shape"], len(value["data"]))
    if value["dtype"] == "bool" and value["data"].translate(None, b"\0\1"):
        raise InvalidInput("the data of a tensor of bool must be bytes of 0 and 1")


def _check_tensor(name: str, shape: list[Any], size: int) -> None:
    if name not in ITEM_SIZES:
        known = ", ".join(ITEM_SIZES)
        raise InvalidInput(f"unknown tensor dtype {name[:40]!r}: use one of {known}")
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidInput(f"a tensor of {len(shape)} dimensions: at most {MAX_DIMENSIONS}")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**48 for n in shape):
        raise InvalidInput("a tensor's shape must be a list of integers that are not negative")
    if math.prod(n or 1 for n in shape) >= 2**56:  # no library can hold it, even where one n is 0
        raise InvalidInput("a tensor's shape is too large")
    expected = math.prod(shape) * ITEM_SIZES[name]
    if expected != size:
        raise InvalidInput(
            f"a tensor of {name} and shape {str(shape)[:80]} needs {expected} bytes of data, "
            f"but there are {size}"
        )


def read_vector(value: Binary) -> tuple[str, int, memoryview]:
    """Element type (int8, float32 or packed bool), number of elements and bytes of a vector.

    Raises InvalidInput for a header or a length that no vector can have.
    """
    if len(value) < 2 or value[0] not in _VECTOR_TYPES:
        raise InvalidInput("a BSON vector (binary subtype 9) has an unknown header")
    name, padding, data = _VECTOR_TYPES[value[0]], value[1], memoryview(value)[2:]
    if name == "bool":
        if padding > 7 or (padding and not data):
            raise InvalidInput(f"a BSON vector of bits cannot have {padding} bits of padding")
        return name, len(data) * 8 - padding, data
    size = ITEM_SIZES[name]
    if padding or len(data) % size:
        raise InvalidInput(f"a BSON vector of {name} with {len(data)} bytes of data is corrupt")
    return name, len(data) // size, data


def vector_numbers(value: Binary) -> list[Any]:
    """The numbers of a BSON vector; bits as 0 and 1."""
    name, count, data = read_vector(value)
    if name == "bool":
        return [(data[index >> 3] >> (7 - (index & 7))) & 1 for index in range(count)]
    return list(struct.unpack(f"<{count}{'b' if name == 'int8' else 'f'}", data))


def library(arrays: Arrays, kind: str | None = None) -> Any:
    """The module whose arrays are wanted: torch, numpy, or None where neither can be had.

    `"auto"` is what the value was when it was stored, else torch where this process uses it, else
    numpy. Raises MissingExtra if a library is asked for by name and is not installed.
    """
    if arrays != "auto":
        module = load(arrays)
        if module is None:
            raise MissingExtra.of("torch", f"decoding to {arrays}")
        return module
    if kind == "torch":
        return load("torch") or load("numpy")
    if kind == "numpy":
        return load("numpy")
    return loaded("torch") or load("numpy")


def decode_vector(value: Binary, arrays: Arrays) -> Any:
    """A BSON vector as a 1-D array, bits as booleans; as it is where there is no library for it."""
    name, count, data = read_vector(value)
    module = library(arrays)
    if module is None:
        return value
    if name == "bool":
        numpy = _numpy("decoding a vector of bits")
        packed = numpy.frombuffer(data, dtype="uint8")
        return _given_to(module, numpy.unpackbits(packed, count=count).astype(bool))
    return _array(module, name, [count], data)


def decode_tensor_document(value: Mapping[str, Any], arrays: Arrays) -> Any:
    """A stored tensor as an array; as it is where there is no library for it."""
    check_tensor_document(value)
    module = library(arrays, value.get("kind"))
    if value["dtype"] == "bfloat16":  # numpy has none
        module = load("torch")
    if module is None:
        return value
    return _array(module, value["dtype"], value["shape"], memoryview(value["data"]))


def _array(module: Any, name: str, shape: list[int], data: memoryview) -> Any:
    # A copy, because what pymongo hands out is read-only and models may write into their input.
    if module.__name__ == "numpy":
        return module.frombuffer(bytearray(data), dtype=name).reshape(shape)
    dtype = getattr(module, name)
    if not data:  # torch.frombuffer refuses to look at nothing
        return module.empty(shape, dtype=dtype)
    return module.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _given_to(module: Any, array: Any) -> Any:
    return module.from_numpy(array) if module.__name__ == "torch" else array


# What a model is given -----------------------------------------------------------------------

_NUMBERS = {int, float, bool, Int64}


def is_numeric_list(value: list[Any]) -> bool:
    """Whether a list holds numbers and nothing else, at every level."""
    kinds = set(map(type, value))
    if kinds <= _NUMBERS:
        return bool(kinds)
    return kinds == {list} and all(map(is_numeric_list, value))


def array_of_list(value: list[Any], arrays: Arrays) -> Any:
    """An array of a list of numbers; the list itself if its rows differ in length.

    Numbers with a fraction become float32 for torch, as its weights are, and float64 for numpy.
    """
    module = library(arrays)
    if module is None:
        return value
    try:
        array = _numpy("making an array of a list").array(value)
    except ValueError:  # rows of different lengths
        return value
    if module.__name__ == "torch" and array.dtype == "float64":
        array = array.astype("float32")
    return _given_to(module, array)


def array_of_npy(data: bytes, arrays: Arrays) -> Any:
    """The array in the bytes of a .npy file.

    Raises InvalidInput if they are damaged, or hold Python objects.
    """
    stream = BytesIO(data)
    formats = _numpy("reading an array from .npy bytes").lib.format
    try:
        version = formats.read_magic(stream)
        read = formats.read_array_header_1_0 if version[0] == 1 else formats.read_array_header_2_0
        shape, columns_first, dtype = read(stream)
    except ValueError as error:
        raise InvalidInput(
            f"bytes that begin like a .npy file are damaged: {error!s:.200}"
        ) from error
    rest = memoryview(data)[stream.tell() :]
    _check_tensor(dtype.name, list(shape), len(rest))
    array = _array(load("numpy"), dtype.str, [math.prod(shape)], rest)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    array = array.reshape(shape, order="F" if columns_first else "C")
    return _given_to(library(arrays), array)
