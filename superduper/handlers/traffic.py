"""Commands about versions on trial: set their shares, show how they do."""

from typing import Any

from superduper import commands
from superduper.command import build
from superduper.errors import InUse, InvalidInput
from superduper.handlers.context import Context
from superduper.handlers.predictions import component_of
from superduper.store.component import Component
from superduper.store.traffic import traffic_id

COUNTS = (
    "live_answered",
    "live_failed",
    "canary_answered",
    "canary_failed",
    "shadow_same",
    "shadow_different",
    "shadow_failed",
    "shadow_dropped",
)


def set_traffic(context: Context, command: commands.SetTraffic, author: str) -> dict[str, Any]:
    """Put a policy in the place of the one before, once its versions are loaded where it is used.

    Raises NotFound for a version that is not there, InvalidInput for the live one.
    """
    live, version = _version(context, command, None)
    rivals = [each for each in (command.canary, command.shadow) if each is not None]
    components = []
    for rival in rivals:
        component, told = _version(context, command, rival.version)
        if component.id == live.id:
            raise InvalidInput(
                f"version {told} is live, or the same model as the one that is: it has all of the "
                "traffic already"
            )
        components.append(component)
    if context.hosts.is_loaded(live.id):
        for component in components:
            context.hosts.load(component)
    id = traffic_id(command.collection, command.kind, command.name)
    if not rivals:
        context.traffic.delete(id)
    else:
        context.traffic.set(id, _policy(command), by=author)
    return _shown(context, command, version)


def _policy(command: commands.SetTraffic) -> dict[str, Any]:
    return {
        "canary": command.canary and command.canary.model_dump(),
        "shadow": command.shadow and command.shadow.model_dump(),
    }


def show(context: Context, command: commands.ShowTraffic) -> dict[str, Any]:
    """The policy and its counts, this process's newest included."""
    context.tally.flush()
    _, version = _version(context, command, None)
    return _shown(context, command, version)


def check_unused(context: Context, command: commands.DeleteComponent) -> None:
    """Refuse to delete a version that is on trial; forget the policy of a model that goes.

    Raises InUse.
    """
    id = traffic_id(command.collection, command.kind, command.name)
    policy = context.traffic.get(id) or {}
    versions = [(policy.get(side) or {}).get("version") for side in ("canary", "shadow")]
    if command.version is not None and command.version in versions:
        raise InUse(
            f"version {command.version} of {command.kind} {command.name!r} has a share of the "
            "traffic: take that from it first, with set_traffic()"
        )
    if command.version is None:
        context.traffic.delete(id)


def _version(
    context: Context, command: commands.OnEither, version: int | None
) -> tuple[Component, int | None]:
    place = {name: getattr(command, name) for name in ("collection", "kind", "name")}
    return component_of(context, build(commands.OnPredictor, **place, version=version))


def _shown(context: Context, command: commands.OnEither, live: int | None) -> dict[str, Any]:
    id = traffic_id(command.collection, command.kind, command.name)
    policy = context.traffic.get(id) or {}
    counts = policy.get("counts") or {}
    return {
        "live": live,
        "canary": policy.get("canary"),
        "shadow": policy.get("shadow"),
        "counts": {name: int(counts.get(name, 0)) for name in COUNTS},
        "largest_difference": counts.get("largest_difference"),
        "set_at": policy.get("set_at"),
        "set_by": policy.get("set_by"),
    }
