"""Mixed precision: the forward pass and the loss in 16 bits, weights and steps in 32.

bf16 has the range of float32 and needs nothing more. In fp16 small gradients would become 0: the
loss is scaled up before it goes backward and the gradients down again before they are used; a step
whose gradients have overflowed is left out, and the scale halved.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from superduper.errors import InvalidInput

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """How a training computes: `None` is float32 throughout, else "bf16" or "fp16"."""

    def __init__(self, name: str | None = None, device: str | torch.device = "cpu") -> None:
        if name is not None and name not in DTYPES:
            raise InvalidInput(
                f"mixed_precision must be {' or '.join(map(repr, DTYPES))}, or None for float32; "
                f"not {name!r}"
            )
        self.name = name
        self._device = torch.device(device).type
        self._scaler = torch.amp.GradScaler(self._device) if name == "fp16" else None

    def forward(self) -> contextlib.AbstractContextManager[Any]:
        """In this context a model and a loss are computed."""
        if self.name is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device, dtype=DTYPES[self.name])

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients of a loss."""
        torch.autograd.backward(loss if self._scaler is None else self._scaler.scale(loss))

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer's gradients their own size, for who looks at them before the step."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)

    def step(self, *optimizers: torch.optim.Optimizer) -> None:
        """A step of every optimizer on the gradients of one loss."""
        if self._scaler is None:
            for optimizer in optimizers:
                optimizer.step()
            return
        for optimizer in optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The scale, and how long it has held."""
        return {} if self._scaler is None else dict(self._scaler.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(dict(state))


def compile_module(module: torch.nn.Module, backend: bool | str) -> None:
    """Have torch compile a module in its place; names of weights stay what they are.

    Raises InvalidInput for a backend that torch does not know.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if isinstance(backend, str) and backend not in known:
        raise InvalidInput(f"torch has no compiler backend {backend!r}; it has {', '.join(known)}")

    def call(*inputs: Any, **named: Any) -> Any:
        return module._call_impl(*inputs, **named)  # type: ignore[no-untyped-call]

    # As `module.compile()` does it, which leaves torch's own classes, a Sequential say, as they
    # are: torch compiles no frame of its own code. This frame is ours.
    chosen = backend if isinstance(backend, str) else "inductor"
    module._compiled_call_impl = torch.compile(call, backend=chosen)
