"""Commands about components: register, list, show, delete."""

from typing import Any

from superduper import commands
from superduper.errors import InUse
from superduper.fields.sealing import Sealed
from superduper.handlers import forms
from superduper.handlers.context import Context
from superduper.handlers.pins import KIND_PINS
from superduper.handlers.traffic import check_unused
from superduper.store.component import Component
from superduper.store.forms import PLAIN


def register(context: Context, command: commands.RegisterComponent, author: str) -> dict[str, Any]:
    """Seal of the object, trial in a fresh child, then the record: in that order."""
    sealed = Sealed.from_dict(command.sealed)
    draft = context.registry.draft(command.collection, command.kind, command.name, sealed, author)
    known = context.registry.find_same(draft)
    wish = forms.wish_of(context, command)
    if known is not None and not command.has_sample and wish is None:
        return _shown(context, known)
    details = context.hosts.try_out(
        context.registry.payload(draft),
        command.kind,
        command.sample,
        command.has_sample,
        wish if wish is not None and wish["form"] != PLAIN else None,
    )
    report = details.pop("form", None)
    component = known or context.registry.commit(draft, details=details)
    if command.kind == "model":
        forms.keep(context, command, component, wish, report, author)
    return _shown(context, component)


def _shown(context: Context, component: Component) -> dict[str, Any]:
    form = {"form": context.forms.told(component)} if component.kind == "model" else {}
    return {**shown(component), **form}


def shown(component: Component) -> dict[str, Any]:
    """A component as users see it."""
    return {
        "kind": component.kind,
        "name": component.name,
        "version": component.version,
        "content": component.content,
        "created_at": component.created_at,
        "created_by": component.created_by,
        "origin": component.origin,
        **component.details,
    }


def list_components(context: Context, command: commands.ListComponents) -> list[dict[str, Any]]:
    """The components of a kind; of models also the form that serves."""
    rows = context.registry.list(command.collection, command.kind)
    if command.kind != "model":
        return rows
    serving = context.forms.serving(command.collection)
    return [{**row, "form": serving.get((row["name"], row["live"]), PLAIN)} for row in rows]


def show(context: Context, command: commands.ShowComponent) -> dict[str, Any]:
    """One component."""
    return _shown(
        context,
        context.registry.get(command.collection, command.kind, command.name, command.version),
    )


def delete(context: Context, command: commands.DeleteComponent) -> dict[str, Any]:
    """Delete a component or a version of it, unless an imputation uses it."""
    context.registry.get(command.collection, command.kind, command.name, command.version)
    for record in context.imputations.find(command.collection):
        if uses(record.spec, command.kind, command.name):
            raise InUse(
                f"{command.kind} {command.name!r} is used by imputation {record.name!r}: "
                "delete that first"
            )
    if command.kind == "model":
        check_unused(context, command)
        if command.version is None:
            context.forms.delete(command.collection, command.name)
    context.registry.delete(command.collection, command.kind, command.name, command.version)
    return {"deleted": command.name}


def uses(spec: Any, kind: str, name: str) -> bool:
    """Whether an imputation's settings name a component."""
    if kind == "function":
        return bool(spec.get("target") == name)
    if kind == "metric":
        return name in (spec.get("metrics") or ())
    if kind == "model":
        return name in (spec.get("model"), spec.get("target"))
    if kind in KIND_PINS:
        return name in spec["pins"].get(KIND_PINS[kind], {})
    if kind == "trainer":
        return bool((spec.get("trainer") or {}).get("name") == name)
    return bool(spec.get(kind) == name)
