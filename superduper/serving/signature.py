"""What a model takes and gives, as named tensors: learnt from its sample when it is registered.

A tensor is `{"name", "dtype", "shape"}`, without the dimension of the batch. The datatype is one of
arrays, `text`, `bytes`, or `json` for what is no tensor: that travels as JSON text. A length that
may differ from row to row is -1.
"""

from collections.abc import Mapping
from typing import Any

from superduper.fields import images, tensors

INPUT, OUTPUT, CONFIDENCE = "input", "output", "confidence"
TEXT, BYTES, JSON = "text", "bytes", "json"

Tensor = dict[str, Any]


def tensors_of(value: Any, name: str) -> list[Tensor]:
    """The tensors of one value: one for each field of a dict, else one of that name."""
    if isinstance(value, Mapping) and value:
        return [{"name": str(key), **_form(item)} for key, item in value.items()]
    return [{"name": name, **_form(value)}]


def _form(value: Any) -> Tensor:
    if tensors.is_array(value):
        form = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        if form["dtype"] not in tensors.ITEM_SIZES:
            return {"dtype": JSON, "shape": []}
        # Which library it was made with matters to a preprocess that is given it.
        return {**form, "kind": "numpy"} if not hasattr(value, "detach") else form
    if isinstance(value, list | tuple) and value:
        inner = [_form(item) for item in value]
        if inner[0]["dtype"] != JSON and all(form == inner[0] for form in inner):
            return {"dtype": inner[0]["dtype"], "shape": [-1, *inner[0]["shape"]]}
    return {"dtype": _single(value), "shape": []}


def _single(value: Any) -> str:
    if isinstance(value, str):
        return TEXT
    if isinstance(value, bytes) or images.is_image(value):  # an image comes as the file's bytes
        return BYTES
    for kind, dtype in ((bool, "bool"), (int, "int64"), (float, "float64")):
        if isinstance(value, kind):
            return dtype
    return JSON
