"""Tensors as the Open Inference Protocol has them: read from JSON or bytes, and written so.

Everything is checked before it is allocated: a shape is only a claim about data that is there.
"""

import itertools
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from superduper.errors import InvalidInput, UserCodeError
from superduper.fields import images, tensors
from superduper.fields.json import dumps, loads
from superduper.serving.blocks import HEAD, Block, layout_of
from superduper.serving.signature import BYTES as RAW
from superduper.serving.signature import JSON, OUTPUT, TEXT, Tensor

BYTES = "BYTES"
BF16 = "BF16"
DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    BF16: "bfloat16",
}
_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}
_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}


def datatype_of(dtype: str) -> str:
    """The protocol's word for a datatype; what it has none for travels as BYTES."""
    return _DATATYPES.get(dtype, BYTES)


@dataclass(frozen=True)
class Column:
    """One named tensor of a batch: an array, or for BYTES its elements in a flat list."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any


# Reading -------------------------------------------------------------------------------------


def check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """A declared shape: at least one row, nothing negative."""
    most = tensors.MAX_DIMENSIONS
    valid = isinstance(shape, list) and 0 < len(shape) <= most
    if not valid or not all(type(size) is int and 0 <= size < 2**48 for size in shape):
        raise InvalidInput(
            f"input {name!r}: its shape must be a list of 1 to {most} integers that are not "
            "negative and below 2**48, the number of rows first"
        )
    if shape[0] == 0:
        raise InvalidInput(f"input {name!r}: its shape has no rows: send at least one")
    return tuple(shape)


def read_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Column:
    """A tensor whose data is a list in JSON, flat or nested as its shape."""
    flat = _flat(name, shape, data)
    if len(flat) != math.prod(shape):
        raise InvalidInput(
            f"input {name!r}: shape {list(shape)} needs {math.prod(shape)} elements, "
            f"its data has {len(flat)}"
        )
    if datatype == BYTES:
        if not set(map(type, flat)) <= {str}:
            raise InvalidInput(f"input {name!r}: data of BYTES in JSON must be strings")
        return Column(name, datatype, shape, flat)
    return Column(name, datatype, shape, _numbers(name, datatype, flat).reshape(shape))


def _flat(name: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidInput(f"input {name!r}: its data must be a list")
    flat: list[Any] = data
    for level in range(1, len(shape)):
        if list not in set(map(type, flat)):
            break
        if set(map(type, flat)) != {list} or len(flat) != math.prod(shape[:level]):
            raise InvalidInput(f"input {name!r}: its data is not nested as shape {list(shape)}")
        if set(map(len, flat)) != {shape[level]}:
            raise InvalidInput(f"input {name!r}: its data is not nested as shape {list(shape)}")
        flat = list(itertools.chain.from_iterable(flat))
    return flat


def _numbers(name: str, datatype: str, flat: list[Any]) -> Any:
    if datatype == BF16:
        raise InvalidInput(f"input {name!r}: BF16 has no form in JSON: send it as binary data")
    dtype = np.dtype(DTYPES[datatype])
    if not set(map(type, flat)) <= _JSON_TYPES[dtype.kind]:
        raise InvalidInput(f"input {name!r}: its data has elements that are not of {datatype}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype)
    except OverflowError as error:
        raise InvalidInput(f"input {name!r}: an element does not fit {datatype}") from error
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput(f"input {name!r}: an element does not fit {datatype}")
    return array


def read_binary(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> Column:
    """A tensor whose data are bytes: little-endian and row by row, BYTES with their lengths."""
    if datatype == BYTES:
        return Column(name, datatype, shape, _elements(name, math.prod(shape), data))
    dtype = np.dtype(np.uint16 if datatype == BF16 else DTYPES[datatype])
    if math.prod(shape) * dtype.itemsize != len(data):
        raise InvalidInput(
            f"input {name!r}: {datatype} of shape {list(shape)} needs "
            f"{math.prod(shape) * dtype.itemsize} bytes of data, not {len(data)}"
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    if datatype == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise InvalidInput(f"input {name!r}: data of BOOL must be bytes of 0 and 1")
    return Column(name, datatype, shape, array)


def _elements(name: str, count: int, data: memoryview) -> list[bytes]:
    elements: list[bytes] = []
    start = 0
    while start + 4 <= len(data) and len(elements) < count:
        (size,) = struct.unpack_from("<I", data, start)
        elements.append(bytes(data[start + 4 : start + 4 + size]))
        start += 4 + size
    if start != len(data) or len(elements) != count:
        raise InvalidInput(
            f"input {name!r}: its data are not {count} elements, each after its length in 4 bytes"
        )
    return elements


def stored_rows(column: Column, expected: Tensor | None) -> Sequence[Any]:
    """The rows of a tensor, each as it would be stored in a document."""
    if column.datatype == BYTES:
        made = [_element(column.name, each, expected) for each in column.data]
        if len(column.shape) == 1:
            return made
        width = math.prod(column.shape[1:])
        return [made[row * width : (row + 1) * width] for row in range(column.shape[0])]
    if len(column.shape) == 1:
        if column.datatype == BF16:
            return [float(each) for each in _widened(column.data)]
        rows: list[Any] = column.data.tolist()
        return rows
    return _stored_arrays(column, "numpy" if (expected or {}).get("kind") == "numpy" else "torch")


def _stored_arrays(column: Column, kind: str) -> Sequence[Any]:
    layout = layout_of(DTYPES[column.datatype], column.shape[1:], kind)
    if not layout.row_bytes:
        return [layout.stored(b"") for _ in range(column.shape[0])]
    return Block(layout, column.data.reshape(-1).view(np.uint8).data)


def _element(name: str, element: str | bytes, expected: Tensor | None) -> Any:
    dtype = None if expected is None else expected["dtype"]
    if dtype == RAW:
        return element.encode() if isinstance(element, str) else element
    try:
        text = element if isinstance(element, str) else element.decode()
    except UnicodeDecodeError as error:
        if dtype is None:
            return element
        raise InvalidInput(f"input {name!r}: an element is not UTF-8 text") from error
    return text if dtype in (None, TEXT) else loads(text.encode())


# Answers -------------------------------------------------------------------------------------


def column_of_block(block: Block, expected: Sequence[Tensor]) -> Column | None:
    """The tensor that a block of outputs is; None if it has another form in the protocol."""
    dtype = block.layout.dtype
    is_text = any(tensor["name"] == OUTPUT and tensor["dtype"] == JSON for tensor in expected)
    if is_text or dtype not in _DATATYPES:
        return None
    plain = np.uint16 if dtype == "bfloat16" else np.dtype(dtype)
    array = np.frombuffer(block.data, plain).reshape(len(block), *block.layout.shape)
    return Column(OUTPUT, datatype_of(dtype), array.shape, array)


def columns_of(values: Sequence[Any], expected: Sequence[Tensor]) -> list[Column]:
    """The tensors of a model's outputs, one row each: one tensor, or one for each field.

    Raises UserCodeError if the rows do not go together.
    """
    known = {tensor["name"]: tensor["dtype"] for tensor in expected}
    if OUTPUT in known or not all(map(_has_fields, values)):
        return [_column(OUTPUT, values, known.get(OUTPUT))]
    names = list(values[0])
    if any(list(value) != names for value in values):
        raise UserCodeError("the model's outputs for these inputs have different fields")
    return [_column(name, [value[name] for value in values], known.get(name)) for name in names]


def _has_fields(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and not tensors.is_tensor_document(value)
        and not images.is_image_document(value)
    )


def _column(name: str, values: Sequence[Any], dtype: str | None) -> Column:
    if dtype != JSON:
        for form in (_vectors, _arrays, _plain_numbers, _texts):
            column = form(name, values)
            if column is not None:
                return column
    return Column(name, BYTES, (len(values),), [dumps(value) for value in values])


def _vectors(name: str, values: Sequence[Any]) -> Column | None:
    """The quick way for what most models give: a row of float32 for each input."""
    if not all(map(is_float32, values)):
        return None
    if any(len(value) != len(values[0]) for value in values):
        raise _differing(name)
    data = np.frombuffer(b"".join([value[2:] for value in values]), np.float32)
    array = data.reshape(len(values), -1)
    return Column(name, "FP32", array.shape, array)


def is_float32(value: Any) -> bool:
    """Whether a stored value is a vector of float32."""
    return tensors.is_vector(value) and value[:2] == HEAD


def _arrays(name: str, values: Sequence[Any]) -> Column | None:
    found = [_array(value) for value in values]
    forms = {None if each is None else each[0] for each in found}
    if None in forms or len(forms) != 1:
        return None
    arrays = [each[1] for each in found if each is not None]
    if any(array.shape != arrays[0].shape for array in arrays):
        raise _differing(name)
    stacked = np.stack(arrays)
    return Column(name, datatype_of(str(forms.pop())), stacked.shape, stacked)


def _array(value: Any) -> tuple[str, Any] | None:
    if tensors.is_vector(value):
        array = tensors.decode_vector(value, "numpy")
        return array.dtype.name, array
    if isinstance(value, Mapping) and tensors.is_tensor_document(value):
        dtype = value["dtype"]
        if dtype not in _DATATYPES:
            return None
        plain = np.uint16 if dtype == "bfloat16" else np.dtype(dtype)
        return dtype, np.frombuffer(value["data"], plain).reshape(value["shape"])
    if isinstance(value, list) and tensors.is_numeric_list(value):
        try:
            array = np.array(value)
        except ValueError:
            return None
        return (array.dtype.name, array) if array.dtype.name in _DATATYPES else None
    return None


def _plain_numbers(name: str, values: Sequence[Any]) -> Column | None:
    kinds = {bool if type(v) is bool else float if type(v) is float else int for v in values}
    if not all(isinstance(value, int | float) for value in values) or kinds == {bool, int}:
        return None
    array = np.array(values, bool if kinds == {bool} else "int64" if kinds == {int} else "float64")
    return Column(name, datatype_of(array.dtype.name), array.shape, array)


def _texts(name: str, values: Sequence[Any]) -> Column | None:
    if all(isinstance(value, str | bytes) for value in values):
        data = [v.encode() if isinstance(v, str) else bytes(v) for v in values]
        return Column(name, BYTES, (len(values),), data)
    width = len(values[0]) if isinstance(values[0], list) else 0
    if not width or not all(isinstance(v, list) and set(map(type, v)) == {str} for v in values):
        return None
    if any(len(value) != width for value in values):
        raise _differing(name)
    return Column(name, BYTES, (len(values), width), [t.encode() for v in values for t in v])


def _differing(name: str) -> UserCodeError:
    return UserCodeError(
        f"output {name!r}: the rows for these inputs differ in shape: ask for one input at a time"
    )


def _widened(array: Any) -> Any:
    return (array.astype(np.uint32) << 16).view(np.float32)


def to_json(column: Column) -> Any:
    """The elements in a flat list that orjson can write."""
    if column.datatype == BYTES:
        try:
            return [each.decode() for each in column.data]
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"output {column.name!r} is not text: ask for it with binary_data"
            ) from error
    array = _widened(column.data) if column.datatype == BF16 else column.data
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput(
            f"output {column.name!r} has NaN or infinity, which JSON has not: "
            "ask for it with binary_data"
        )
    return np.ascontiguousarray(array).reshape(-1)


def to_binary(column: Column) -> bytes:
    """The elements as bytes."""
    if column.datatype == BYTES:
        return b"".join([struct.pack("<I", len(each)) + each for each in column.data])
    data: bytes = column.data.tobytes()
    return data
