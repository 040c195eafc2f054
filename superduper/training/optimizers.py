"""Optimizers by name: any of `torch.optim`, in whatever case it is written."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from superduper.errors import InvalidInput

_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and value is not torch.optim.Optimizer
}


def optimizer_of(
    spec: str | Mapping[str, Any], parameters: Iterable[torch.nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    """The optimizer a specification asks for: a name, or `{"name": ..., "arguments": {...}}`.

    `lr` is used where the arguments do not have their own.
    Raises InvalidInput for an unknown name, wrong arguments, or a model with nothing to train.
    """
    name = spec if isinstance(spec, str) else str(spec["name"])
    arguments = {} if isinstance(spec, str) else dict(spec.get("arguments") or {})
    factory = _CLASSES.get(name.lower())
    if factory is None:
        known = ", ".join(sorted(_CLASSES))
        raise InvalidInput(
            f"there is no optimizer {name[:80]!r} in torch.optim; there are: {known}"
        )
    trained = list(parameters)
    if not trained:
        raise InvalidInput(
            "the model has no parameters to train: leave out `loss` to use it as it is"
        )
    try:
        return factory(trained, **{"lr": lr, **arguments})
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"optimizer {name!r} refused its arguments: {error}") from error
