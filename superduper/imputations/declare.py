"""From a command to the record of an imputation or a watcher: which fields it reads and writes."""

from collections.abc import Iterable, Mapping
from typing import Any

from superduper.commands import CreateImputation, CreateWatcher
from superduper.errors import InvalidInput
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.provenance import BASE
from superduper.names import imputation_name


def as_paths(keys: str | Iterable[str]) -> tuple[str, ...]:
    """A key or a list of keys as a tuple of paths."""
    return (keys,) if isinstance(keys, str) else tuple(keys)


def output_path(keys: tuple[str, ...], model: str) -> str:
    """Where a plain watcher writes: `_outputs.<key>.<model>`."""
    return f"_outputs.{'_'.join(keys)}.{model}"


def input_paths_of(
    keys: str | Iterable[str], features: Mapping[str, str] | None
) -> tuple[str, ...]:
    """The fields a model reads: the keys, or another model's output where `features` names one."""
    features = features or {}
    return tuple(
        output_path((key,), features[key]) if key in features else key for key in as_paths(keys)
    )


def record_of(
    command: CreateImputation, pins: Mapping[str, Any], *, now: int, author: str
) -> ImputationRecord:
    """The record that a command asks for, its components pinned to versions."""
    spec = command.model_dump(exclude={"collection", "name"})
    keys = as_paths(command.model_key)
    targets = as_paths(command.target_key)
    if BASE in targets and command.fill and command.watcher:
        raise InvalidInput(
            "target_key='_base' is the whole document and cannot be filled: pass fill=False, then "
            "the outputs go to `_outputs`, or watcher=False"
        )
    return ImputationRecord(
        collection=command.collection,
        name=command.name or imputation_name(command.target_key, command.model_key),
        kind="imputation",
        spec={**spec, "pins": dict(pins)},
        input_paths=input_paths_of(keys, command.features),
        target_paths=targets,
        write_paths=targets if command.fill else (output_path(keys, command.model),),
        created_at=now,
        created_by=author,
    )


def watcher_of(
    command: CreateWatcher, pins: Mapping[str, Any], *, now: int, author: str
) -> ImputationRecord:
    """The record of a plain watcher: an imputation with nothing to train."""
    keys = as_paths(command.key)
    target = command.target or output_path(keys, command.model)
    spec = {
        "model": command.model,
        "model_key": command.key,
        "target_key": target,
        "filter": command.filter,
        "features": command.features,
        "on_input_change": "refill",
        "fill": True,
        "watcher": True,
        "min_confidence": None,
        "loss": None,
        "pins": dict(pins),
    }
    return ImputationRecord(
        collection=command.collection,
        name=command.name,
        kind="watcher",
        spec=spec,
        input_paths=input_paths_of(keys, command.features),
        target_paths=(target,),
        write_paths=(target,),
        created_at=now,
        created_by=author,
    )
