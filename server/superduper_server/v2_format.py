"""Requests and answers of the Open Inference Protocol, in JSON, as binary tensors, or both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from superduper.commands.predictions import MOST_INPUTS
from superduper.errors import InvalidInput, UserCodeError
from superduper.serving.blocks import BlockOutcomes
from superduper.serving.signature import CONFIDENCE, JSON, Tensor
from superduper_server import bodies, v2_tensors
from superduper_server.limits import UnsupportedMediaType
from superduper_server.v2_tensors import BF16, BYTES, DTYPES, Column

HEADER_LENGTH = "inference-header-content-length"
OCTETS = "application/octet-stream"
_UNSUPPORTED = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives; empty lists where it was registered without a sample."""

    inputs: Sequence[Tensor] = ()
    outputs: Sequence[Tensor] = ()
    by_field: bool = False

    @classmethod
    def of(cls, details: Mapping[str, Any] | None) -> "Signature":
        """The signature among the details of a component."""
        found = (details or {}).get("signature")
        return cls() if found is None else cls(**found)


@dataclass(frozen=True)
class Question:
    """One inference request: a stored value for each row, and which outputs are wanted how."""

    id: str
    values: Sequence[Any]
    outputs: Mapping[str, bool] | None
    is_binary: bool
    timeout: float | None = None


# Reading -------------------------------------------------------------------------------------


def read(headers: Mapping[str, str], body: bytes, signature: Signature) -> Question:
    """The request in a body.

    Raises InvalidInput that says what is wrong, MalformedBody if it cannot be read at all.
    """
    _check_media_type(headers)
    length = _header_length(headers, len(body))
    if length == 0:
        return _raw(body, signature)
    asked = bodies.parse_object(body if length is None else body[:length])
    rest = memoryview(body)[len(body) if length is None else length :]
    columns = _columns(asked.get("inputs"), rest)
    id, parameters = asked.get("id", ""), _parameters(asked)
    if not isinstance(id, str):
        raise InvalidInput("id: must be a string")
    is_binary = _flag(parameters, "binary_data_output")
    outputs = _outputs(asked.get("outputs"), signature, is_binary)
    values = _values(columns, signature)
    return Question(id, values, outputs, is_binary, _timeout(parameters))


def _check_media_type(headers: Mapping[str, str]) -> None:
    # What a page of any site may send without asking is not taken.
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", bodies.JSON, OCTETS):
        raise UnsupportedMediaType(f"send the body as {bodies.JSON} or {OCTETS}")


def _header_length(headers: Mapping[str, str], size: int) -> int | None:
    text = headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) > size:
        raise InvalidInput(
            f"Inference-Header-Content-Length: {text[:40]!r} must be the length of the JSON at the "
            f"beginning of the body, which has {size} bytes"
        )
    return int(text)


def _parameters(owner: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInput("parameters: must be an object")
    for name in _UNSUPPORTED:
        if name in parameters:
            raise InvalidInput(f"parameters: {name}: shared memory is not supported")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"parameters: {name} must be true or false")
    return value


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    value = parameters.get("timeout")
    if value is None or value == 0:
        return None
    if type(value) is not int or value < 0:
        raise InvalidInput("parameters: timeout must be a number of microseconds")
    return value / 1e6


def _columns(inputs: Any, rest: memoryview) -> list[Column]:
    if not isinstance(inputs, list) or not inputs:
        raise InvalidInput("inputs: must be a list of at least one tensor")
    columns: list[Column] = []
    start = 0
    for each in inputs:
        column, size = _column(each, rest[start:])
        if any(other.name == column.name for other in columns):
            raise InvalidInput(f"input {column.name!r} is given twice")
        columns.append(column)
        start += size
    if start != len(rest):
        raise InvalidInput(
            f"{len(rest)} bytes of binary data follow the JSON, but its inputs tell of {start}"
        )
    return columns


def _column(tensor: Any, rest: memoryview) -> tuple[Column, int]:
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise InvalidInput("inputs: each must be an object with name, datatype, shape and data")
    name, datatype = tensor["name"][:120], tensor.get("datatype")
    if datatype != BYTES and (not isinstance(datatype, str) or datatype not in DTYPES):
        known = ", ".join([*DTYPES, BYTES])
        raise InvalidInput(f"input {name!r}: unknown datatype {str(datatype)[:40]!r}: use {known}")
    shape = v2_tensors.check_shape(name, tensor.get("shape"))
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        if "data" not in tensor:
            raise InvalidInput(f"input {name!r} has no data")
        return v2_tensors.read_json(name, datatype, shape, tensor["data"]), 0
    if "data" in tensor:
        raise InvalidInput(f"input {name!r} has both data and binary_data_size")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise InvalidInput(
            f"input {name!r}: binary_data_size is {str(size)[:40]}, but {len(rest)} bytes are left"
        )
    return v2_tensors.read_binary(name, datatype, shape, rest[:size]), size


def _raw(body: bytes, signature: Signature) -> Question:
    """A body that is nothing but the data of the only input."""
    if len(signature.inputs) != 1:
        raise InvalidInput(
            "a body of raw data needs a model with one input, registered with a sample: "
            "its datatype and shape are not sent"
        )
    [tensor] = signature.inputs
    datatype = v2_tensors.datatype_of(tensor["dtype"])
    name, inner = tensor["name"], tuple(tensor["shape"])
    if datatype == BYTES and not inner:
        column = Column(name, BYTES, (1,), [body])
    else:
        size = 2 if datatype == BF16 else np.dtype(DTYPES.get(datatype, "uint8")).itemsize
        size *= math.prod(inner)
        if datatype == BYTES or min(inner, default=1) < 1 or not body or len(body) % size:
            raise InvalidInput(
                f"input {name!r}: {len(body)} bytes are no whole number of rows of "
                f"{datatype} {list(inner)}"
            )
        shape = (len(body) // size, *inner)
        column = v2_tensors.read_binary(name, datatype, shape, memoryview(body))
    return Question("", _values([column], signature), None, is_binary=True)


def _values(columns: list[Column], signature: Signature) -> Sequence[Any]:
    expected = {tensor["name"]: tensor for tensor in signature.inputs}
    if expected:
        _check(columns, expected)
    count = columns[0].shape[0]
    if count > MOST_INPUTS:  # before each becomes an object; rows of no elements take no bytes
        raise InvalidInput(
            f"input {columns[0].name!r} has {count} rows: at most {MOST_INPUTS} are taken at once"
        )
    for column in columns:
        if column.shape[0] != count:
            raise InvalidInput(
                f"input {column.name!r} has {column.shape[0]} rows, "
                f"input {columns[0].name!r} has {count}"
            )
    rows = {each.name: v2_tensors.stored_rows(each, expected.get(each.name)) for each in columns}
    if signature.by_field or len(columns) > 1:
        return [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    [values] = rows.values()
    return values


def _check(columns: list[Column], expected: Mapping[str, Tensor]) -> None:
    given, known = [column.name for column in columns], ", ".join(expected)
    for name in given:
        if name not in expected:
            raise InvalidInput(f"the model has no input {name!r}: it takes {known}")
    for name in expected:
        if name not in given:
            raise InvalidInput(f"input {name!r} is missing: the model takes {known}")
    for column in columns:
        tensor = expected[column.name]
        datatype = v2_tensors.datatype_of(tensor["dtype"])
        if column.datatype != datatype:
            raise InvalidInput(
                f"input {column.name!r}: the model takes {datatype}, not {column.datatype}"
            )
        inner = column.shape[1:]
        wanted = () if tensor["dtype"] == JSON else tuple(tensor["shape"])
        if len(inner) != len(wanted) or any(
            want not in (-1, size) for want, size in zip(wanted, inner, strict=True)
        ):
            raise InvalidInput(
                f"input {column.name!r}: the model takes shape {[-1, *wanted]}, "
                f"not {list(column.shape)}"
            )


def _outputs(outputs: Any, signature: Signature, is_binary: bool) -> Mapping[str, bool] | None:
    """The outputs asked for by name, and whether as bytes where that is said."""
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list):
        raise InvalidInput("outputs: must be a list")
    wanted: dict[str, bool] = {}
    for each in outputs:
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise InvalidInput("outputs: each must be an object with a name")
        parameters = _parameters(each)
        if parameters.get("classification"):
            raise InvalidInput("parameters: classification is not supported")
        wanted[each["name"]] = _flag(parameters, "binary_data", is_binary)
        if signature.outputs:
            check_output(each["name"], [tensor["name"] for tensor in signature.outputs])
    return wanted


def check_output(name: str, known: Sequence[str]) -> None:
    """Refuse an output that there is not."""
    if name not in known:
        raise InvalidInput(f"the model has no output {name[:120]!r}: it gives {', '.join(known)}")


# Writing -------------------------------------------------------------------------------------


def answer_columns(outcomes: Sequence[dict[str, Any]], expected: Any) -> list[Column]:
    """The tensors of a batch of outcomes, the confidence among them where there is one.

    Raises UserCodeError for the first row that failed: the protocol has no answer in part.
    """
    if isinstance(outcomes, BlockOutcomes):
        column = v2_tensors.column_of_block(outcomes.whole, expected)
        if column is not None:
            return [column]
    for index, outcome in enumerate(outcomes):
        if "error" in outcome:
            raise UserCodeError(f"row {index}: {outcome['error']['message']}")
    columns = v2_tensors.columns_of([outcome.get("value") for outcome in outcomes], expected)
    confidences = [outcome.get("confidence") for outcome in outcomes]
    if None in confidences or any(column.name == CONFIDENCE for column in columns):
        return columns
    return [*columns, Column(CONFIDENCE, "FP64", (len(outcomes),), np.array(confidences, "f8"))]


def write(
    model: str, version: int, question: Question, columns: list[Column]
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and its headers."""
    found = {column.name: column for column in columns}
    wanted = question.outputs or dict.fromkeys(found, question.is_binary)
    outputs, blobs = [], []
    for name, is_binary in wanted.items():
        check_output(name, list(found))
        column = found[name]
        said = {"name": name, "datatype": column.datatype, "shape": list(column.shape)}
        if is_binary:
            blobs.append(v2_tensors.to_binary(column))
            outputs.append({**said, "parameters": {"binary_data_size": len(blobs[-1])}})
        else:
            outputs.append({**said, "data": v2_tensors.to_json(column)})
    answer: dict[str, Any] = {"model_name": model, "model_version": str(version)}
    if question.id:
        answer["id"] = question.id
    answer["outputs"] = outputs
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return head, {"content-type": bodies.JSON}
    return b"".join([head, *blobs]), {
        "content-type": OCTETS,
        "Inference-Header-Content-Length": str(len(head)),
    }
