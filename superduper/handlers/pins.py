"""Which versions of its components an imputation is declared with."""

import contextlib
from collections.abc import Iterator
from typing import Any

from superduper import commands
from superduper.errors import NotFound
from superduper.store.registry import Registry

# Where a record's pins keep the versions of components that are named more than once or not at all.
KIND_PINS = {"optimizer": "optimizers", "policy": "policies"}


def pins_of(registry: Registry, command: commands.CreateImputation) -> dict[str, Any]:
    """The versions of every component that the imputation names; NotFound if one is missing."""

    def live(kind: str, name: str) -> int:
        return registry.get(command.collection, kind, name).version

    pins: dict[str, Any] = {"model": live("model", command.model)}
    if command.target is not None:
        try:
            pins["target"] = {"kind": "function", "version": live("function", command.target)}
        except NotFound:
            pins["target"] = {"kind": "model", "version": live("model", command.target)}
    if command.loss is not None:
        pins["loss"] = live("loss", command.loss)
    if command.trainer is not None:
        pins["trainer"] = live("trainer", command.trainer.name)
    for kind, name in _may_be_registered(command):
        with contextlib.suppress(NotFound):  # then it is one of torch's, or ours
            pins.setdefault(KIND_PINS[kind], {})[name] = live(kind, name)
    pins["metrics"] = {name: live("metric", name) for name in command.metrics}
    return pins


def _may_be_registered(command: commands.CreateImputation) -> Iterator[tuple[str, str]]:
    optimizer, lr = command.optimizer, command.lr
    yield "optimizer", optimizer if isinstance(optimizer, str) else optimizer.name
    for policy in (*command.policies, *([lr] if isinstance(lr, commands.Named) else [])):
        yield "policy", policy.name
