"""Predictions of values as they are stored, with outputs as they can be stored."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bson
from bson.raw_bson import RawBSONDocument

from superduper.fields import codec, tensors
from superduper.serving.blocks import (
    BYTES_PER_FLOAT,
    HEAD,
    Block,
    BlockOutcomes,
    floats,
    layout_of,
)
from superduper.serving.failures import CONTAINED, Failure, each
from superduper.serving.predictor import Predictor
from superduper.serving.rows import Outcome


def predict_stored(predictor: Predictor, values: Sequence[Any]) -> Sequence[Any]:
    """An outcome for each stored value, the outputs as they can be stored."""
    if (stacked := _predict_stacked(predictor, values)) is not None:
        return stacked
    decoded = each(decoding(predictor), values)
    alive = [value for value in decoded if not isinstance(value, Failure)]
    outcomes = iter(predictor.predict(alive))
    return [
        {"error": value.error} if isinstance(value, Failure) else to_stored(next(outcomes))
        for value in decoded
    ]


def _predict_stacked(predictor: Predictor, values: Sequence[Any]) -> Sequence[Any] | None:
    """The quick way, if all is as most often: a bare model, and tensors of one layout.

    None if it is not, or if anything goes wrong: then each value is looked at by itself.
    """
    if not predictor.is_bare or (block := _block_of(values)) is None:
        return None
    torch = tensors.loaded("torch")
    if torch is None:
        return None
    layout = block.layout
    if predictor.domain is not None and not layout.is_floats:
        return None
    try:
        dtype = getattr(torch, layout.dtype)
        rows = torch.frombuffer(bytearray(block.data), dtype=dtype)
        rows = rows.reshape(len(block), *layout.shape)
        if predictor.domain is not None and not predictor.domain.holds(rows):
            return None
        output = predictor.forward_stacked(rows)
        return _stored_rows(predictor, output, len(block))
    except CONTAINED:
        return None


def _block_of(values: Sequence[Any]) -> Block | None:
    if isinstance(values, Block):
        return values
    first = values[0]
    if not tensors.is_vector(first):
        return None
    size = len(first)
    if size <= len(HEAD) or (size - len(HEAD)) % BYTES_PER_FLOAT:
        return None
    if not all(
        tensors.is_vector(value) and len(value) == size and value[:2] == HEAD for value in values
    ):
        return None
    data = b"".join([memoryview(value)[2:] for value in values])
    return Block(floats((size - len(HEAD)) // BYTES_PER_FLOAT), data)


def _stored_rows(predictor: Predictor, output: Any, count: int) -> Sequence[Any]:
    torch = tensors.loaded("torch")
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
    dtype = str(output.dtype).removeprefix("torch.") if shape else ""
    is_dense = len(shape) > 1 and output.layout == torch.strided and dtype in tensors.ITEM_SIZES
    if not is_dense or shape[0] != count or 0 in shape:
        return [to_stored(outcome) for outcome in predictor.outcomes(output, count)]
    plain = output.view(torch.int16) if dtype == "bfloat16" else output  # which numpy has not
    return BlockOutcomes(Block(layout_of(dtype, shape[1:]), plain.numpy(force=True).tobytes()))


def decoding(predictor: Predictor) -> Callable[[Any], Any]:
    """What makes stored values what the predictor wants."""
    if predictor.style == "estimator":
        return lambda value: codec.decode_input(value, arrays="numpy")
    return codec.decode_input


def to_stored(outcome: Outcome) -> Any:
    """An outcome as it can be stored, or the error that says why it cannot."""
    [stored] = each(_raw, [outcome])
    return {"error": stored.error} if isinstance(stored, Failure) else stored


def seen(value: Any) -> dict[str, Any]:
    """What a value is like, and the value itself if it can be stored."""
    [stored] = each(codec.encode, [value])
    return {**describe(value), **({} if isinstance(stored, Failure) else {"value": stored})}


def _raw(outcome: Outcome) -> Any:
    # Made BSON here, one by one, so that a value which BSON cannot hold fails alone.
    if "value" in outcome:
        outcome = {**outcome, "value": codec.encode(outcome["value"])}
    return RawBSONDocument(bson.encode(outcome))


def describe(value: Any) -> dict[str, Any]:
    """Type of an output, and datatype and shape if it is an array."""
    described: dict[str, Any] = {"type": type(value).__name__}
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        described["dtype"] = str(value.dtype).removeprefix("torch.")
        described["shape"] = list(value.shape)
    elif isinstance(value, Mapping):
        described["fields"] = {str(key): describe(item) for key, item in value.items()}
    elif isinstance(value, list):
        described["length"] = len(value)
    return described
