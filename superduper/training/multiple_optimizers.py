"""Several optimizers as one, each under its name: a generator's and a discriminator's."""

from collections.abc import Mapping
from typing import Any

import torch

from superduper.errors import InvalidInput


class MultipleOptimizers:
    """Optimizers by name: `MultipleOptimizers(generator=...).generator.step()`."""

    def __init__(self, **optimizers: torch.optim.Optimizer) -> None:
        for name, optimizer in optimizers.items():
            if hasattr(type(self), name):
                raise InvalidInput(f"an optimizer cannot be called {name!r}: take another name")
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise InvalidInput(
                    f"{name} is a {type(optimizer).__name__}, not a torch.optim optimizer"
                )
        self.optimizers = optimizers

    def __getattr__(self, name: str) -> torch.optim.Optimizer:
        # While a copy is made, `optimizers` is not there yet.
        optimizers: dict[str, torch.optim.Optimizer] = self.__dict__.get("optimizers", {})
        if name not in optimizers:
            raise AttributeError(f"there is no optimizer {name!r}; there are {sorted(optimizers)}")
        return optimizers[name]

    def __repr__(self) -> str:
        each = [f"{name}={type(made).__name__}" for name, made in self.optimizers.items()]
        return f"MultipleOptimizers({', '.join(each)})"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """A step of every optimizer."""
        for optimizer in self.optimizers.values():
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The states by name."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the states by name."""
        if set(state) != set(self.optimizers):
            raise InvalidInput(
                f"the state is of the optimizers {sorted(state)}; these are "
                f"{sorted(self.optimizers)}"
            )
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
