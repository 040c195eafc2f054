"""Parts of a training that are given as objects: they become registered components.

`create_imputation(optimizer=..., lr=..., policies=..., trainer=...)` takes names with arguments,
and objects. An object is sealed, signed and kept like any other code, under a name that follows
from the imputation's; the command then names it.
"""

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from superduper.commands import Named
from superduper.errors import InvalidInput
from superduper.names import imputation_name

# Registers an object: kind, name, object.
Register = Callable[[str, str, Any], Any]
KINDS = {"trainer": "trainer", "optimizer": "optimizer", "lr": "policy", "policies": "policy"}
LONGEST_NAME = 63


def register_objects(
    name: str | None, settings: Mapping[str, Any], register: Register
) -> dict[str, Any]:
    """The settings with names in the place of objects, which are registered.

    Raises InvalidInput for objects that cannot be what they are given as.
    """
    whole = name or _name_of(settings)

    def named(role: str, kind: str, value: Any) -> Any:
        if _is_plain(value):
            return value
        _check(role, value)
        chosen = f"{whole[: LONGEST_NAME - len(role) - 1]}_{role}"
        register(kind, chosen, value)
        return {"name": chosen}

    made = dict(settings)
    for key in ("trainer", "optimizer", "lr"):
        if key in made:
            made[key] = named(key, KINDS[key], made[key])
    policies = made.get("policies")
    if isinstance(policies, list | tuple):
        made["policies"] = [
            named(f"policy_{number}", "policy", each) for number, each in enumerate(policies, 1)
        ]
    return made


def _name_of(settings: Mapping[str, Any]) -> str:
    keys = (settings.get("target_key"), settings.get("model_key"))
    target, source = (key if isinstance(key, str | list | tuple) else "" for key in keys)
    return imputation_name(target, source)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | Real | Mapping | Named)


def _check(role: str, value: Any) -> None:
    if role == "optimizer" and hasattr(value, "param_groups"):
        kind = type(value).__name__
        raise InvalidInput(
            f"optimizer is a {kind} of a model that is here, and the worker trains another copy of "
            f"it: give the class (torch.optim.{kind}), functools.partial of it, or "
            f'{{"name": "{kind.lower()}", "arguments": {{...}}}}'
        )
    if hasattr(value, "optimizer") and hasattr(value, "last_epoch"):
        kind = type(value).__name__
        raise InvalidInput(
            f"{role} is a {kind} of an optimizer that is here, and the worker makes another: give "
            f'{{"name": "{kind}", "arguments": {{...}}}}'
        )
    if role == "trainer" and not isinstance(value, type):
        raise InvalidInput(
            f"trainer is a {type(value).__name__}: give a Trainer subclass, not an instance"
        )
    if role not in ("optimizer", "trainer") and isinstance(value, type):
        raise InvalidInput(f"{role} is the class {value.__name__}: give an instance of it")
