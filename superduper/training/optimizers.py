"""Optimizers by name: any of `torch.optim`, in whatever case it is written."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
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

_OTHER_KERNELS = {"foreach", "fused", "capturable", "differentiable"}


def optimizer_of(
    spec: str | Mapping[str, Any],
    parameters: Iterable[torch.nn.Parameter],
    lr: float,
    registered: Callable[..., Any] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer a specification asks for: a name, or `{"name": ..., "arguments": {...}}`.

    `registered` makes it where the name is not one of torch's. `lr` is used where the arguments do
    not have their own.
    Raises InvalidInput for an unknown name, wrong arguments, or a model with nothing to train.
    """
    name = spec if isinstance(spec, str) else str(spec["name"])
    arguments = {} if isinstance(spec, str) else dict(spec.get("arguments") or {})
    factory = registered or _CLASSES.get(name.lower())
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
    if _takes_rate(factory):
        arguments = {"lr": lr, **arguments}
    try:
        own = {} if registered else _fused(factory, trained, arguments)
        made = factory(trained, **{**own, **arguments})
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"optimizer {name!r} refused its arguments: {error}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise InvalidInput(f"optimizer {name!r} made a {type(made).__name__}, no torch optimizer")
    check_trained({name: made}, trained)
    return made


def _takes_rate(factory: Callable[..., Any]) -> bool:
    """Whether a learning rate is to be passed: a partial may have its own already."""
    if "lr" in getattr(factory, "keywords", {}):
        return False
    parameters = inspect.signature(factory).parameters.values()
    return any(each.name == "lr" or each.kind is each.VAR_KEYWORD for each in parameters)


def check_trained(
    optimizers: Mapping[str, torch.optim.Optimizer], trained: Iterable[torch.nn.Parameter]
) -> None:
    """Raise InvalidInput if what an optimizer trains is not the model's."""
    mine = {id(parameter) for parameter in trained}
    for name, optimizer in optimizers.items():
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidInput(f"{name} is {optimizer!r:.80}: give an optimizer of torch.optim's")
        others = sum(
            id(parameter) not in mine
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
        )
        if others:
            raise InvalidInput(
                f"{name} has {others} parameters that are not the model's: an optimizer of another "
                "model? What is trained beside the model has to be a part of it"
            )


def _fused(
    factory: Callable[..., Any],
    trained: Sequence[torch.nn.Parameter],
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Ask for one kernel for all weights where torch has it: half the time of a step or less.

    Not for those that also take sparse gradients, which the kernel does not.
    """
    has_kernel = factory in (torch.optim.Adam, torch.optim.AdamW)
    if not has_kernel or not _OTHER_KERNELS.isdisjoint(arguments):
        return {}
    fits = all(each.is_floating_point() and each.device.type in ("cpu", "cuda") for each in trained)
    return {"fused": True} if fits else {}


def forget_gradients(optimizer: torch.optim.Optimizer) -> None:
    """What `zero_grad` does, without the profiler's mark around it, which takes longer than it."""
    if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
