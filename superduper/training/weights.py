"""A module's weights as plain tensors: copies, a safetensors blob, a hash."""

from hashlib import sha256
from typing import Any

import torch
from safetensors.torch import save

from superduper.errors import InvalidInput


def copy_of_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The module's state, every tensor a copy of its own in main memory.

    Raises InvalidInput where the state holds something that is no tensor.
    """
    copies: dict[str, torch.Tensor] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise InvalidInput(
                f"{name!r} in the state of {type(module).__name__} is a {type(value).__name__}, "
                "not a tensor: weights are kept as tensors only"
            )
        copies[name] = value.detach().to("cpu", copy=True).contiguous()
    return copies


def weights_blob(state: dict[str, torch.Tensor]) -> bytes:
    """A state as safetensors."""
    return save(state)


def weights_hash(state: dict[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes; equal for equal weights."""
    digest = sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
