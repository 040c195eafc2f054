"""Policies and schedules by name: those of `superduper.training`, and torch's learning rates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from superduper.errors import InvalidInput
from superduper.training import epoch_logs, policies, progress, stops, values
from superduper.training.policies import Policy
from superduper.training.trainer_records import Schedulers

_OURS: dict[str, type[Policy]] = {
    name: value
    for module in (values, stops, progress, epoch_logs, policies)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, Policy) and not name.startswith("_")
    if value is not Policy
}
_TORCHS: dict[str, type[torch.optim.lr_scheduler.LRScheduler]] = {
    name: value
    for name, value in vars(torch.optim.lr_scheduler).items()
    if isinstance(value, type) and issubclass(value, torch.optim.lr_scheduler.LRScheduler)
    if value is not torch.optim.lr_scheduler.ReduceLROnPlateau and not name.startswith("_")
}


def policy_of(
    name: str,
    arguments: Mapping[str, Any],
    optimizers: Sequence[torch.optim.Optimizer],
) -> Policy:
    """A policy by name; a schedule of torch's goes with the optimizers and steps after each epoch.

    Raises InvalidInput for a name that there is none of, and for arguments that it does not take.
    """
    if name in _OURS:
        made: Policy = made_of(name, _OURS[name], arguments)
        return made
    if name in _TORCHS:
        factory = _TORCHS[name]
        return Schedulers(
            [made_of(name, factory, {"optimizer": each, **arguments}) for each in optimizers]
        )
    known = ", ".join(sorted({*_OURS, *_TORCHS}))
    raise InvalidInput(
        f"there is no policy {name[:80]!r}: register it with create_policy, or take one of: {known}"
    )


def made_of(name: str, made: Any, arguments: Mapping[str, Any]) -> Any:
    """An object as it is, or what a class or function makes of the arguments."""
    if not callable(made):
        if arguments:
            raise InvalidInput(
                f"{name!r} is registered as an instance and takes no arguments: register its class"
            )
        return made
    return _called(name, made, _with_numbers(arguments))


def _called(name: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return factory(**arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(f"{name!r} refused its arguments: {error}") from error


def _with_numbers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments whose dicts by epoch have numbers as keys again: JSON and BSON have texts only."""
    return {
        key: {_number(each): value for each, value in content.items()}
        if isinstance(content, Mapping)
        else content
        for key, content in arguments.items()
    }


def _number(key: Any) -> Any:
    return int(key) if isinstance(key, str) and key.isdecimal() else key
