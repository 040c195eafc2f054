"""SHA-256 of files, of data and of models, so that runs can be told apart and compared."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy
import torch

from superduper.errors import InvalidInput
from superduper.training.randomness import random_state, seed_everything, set_random_state
from superduper.training.weights import copy_of_state, weights_hash


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    digest = sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def model_hash(model: torch.nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a model's weights."""
    return weights_hash(copy_of_state(model))


def structure_hash(model: torch.nn.Module) -> str:
    """SHA-256 over the names, types and shapes of a model's weights: equal before and after."""
    lines = [f"{name} {t.dtype} {tuple(t.shape)}" for name, t in copy_of_state(model).items()]
    return sha256("\n".join(lines).encode()).hexdigest()


def data_hash(data: Any) -> str:
    """SHA-256 over all records of a dataset, a dataframe, an array or a list, in order.

    A dataset that draws at random is read as if just seeded, so that its hash is always the same.
    Raises InvalidInput where the data have no length, or hold what has no fixed bytes.
    """
    digest = sha256()
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        _feed(digest, {str(name): data[name].to_numpy() for name in data.columns}, "the data")
        return digest.hexdigest()
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InvalidInput(
            f"a {type(data).__name__} cannot be hashed: it has no length or no order"
        )
    before = random_state()
    seed_everything(0)
    try:
        for number in range(len(data)):
            _feed(digest, data[number], f"record {number}")
    finally:
        set_random_state(before)
    return digest.hexdigest()


def _feed(digest: Any, value: Any, where: str) -> None:
    """Add a value; its type and length go first, so that no two values look alike."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        _feed_bytes(digest, f"t{value.dtype}{tuple(value.shape)}", flat.numpy().tobytes())
    elif isinstance(value, numpy.ndarray) and value.dtype == object:
        _feed(digest, value.tolist(), where)
    elif isinstance(value, numpy.ndarray | numpy.generic):
        _feed_bytes(digest, f"n{value.dtype}{value.shape}", value.tobytes())
    elif isinstance(value, Mapping):
        _feed_bytes(digest, "m", str(len(value)).encode())
        for key in sorted(value, key=str):
            _feed(digest, key, where)
            _feed(digest, value[key], where)
    elif isinstance(value, list | tuple):
        _feed_bytes(digest, "l", str(len(value)).encode())
        for each in value:
            _feed(digest, each, where)
    elif value is None or isinstance(value, bool | int | float | complex | str):
        _feed_bytes(digest, type(value).__name__, repr(value).encode())
    elif isinstance(value, bytes):
        _feed_bytes(digest, "b", value)
    elif hasattr(value, "tobytes") and hasattr(value, "size"):  # an image
        mode = getattr(value, "mode", "")
        _feed_bytes(digest, f"i{mode}{value.size}", value.tobytes())
    elif hasattr(value, "isoformat"):
        _feed_bytes(digest, "d", value.isoformat().encode())
    else:
        raise InvalidInput(f"{where} holds a {type(value).__name__}, which cannot be hashed")


def _feed_bytes(digest: Any, kind: str, content: bytes) -> None:
    digest.update(f"{kind}:{len(content)}:".encode())
    digest.update(content)
