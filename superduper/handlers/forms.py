"""Commands about faster forms of a model: wish for one, show what became of it."""

from typing import Any

from superduper import commands
from superduper.errors import InvalidInput
from superduper.handlers.context import Context
from superduper.store.component import Component
from superduper.store.forms import PLAIN

Wish = dict[str, Any]


def set_form(context: Context, command: commands.SetForm, author: str) -> dict[str, Any]:
    """Wish for a form and load the live version with it, which tries it.

    Raises NotFound for a model that is not there, InvalidInput without inputs to compare on, and
    what loading raises.
    """
    place = command.collection, command.name
    component = context.registry.get(command.collection, "model", command.name)
    if command.form != PLAIN:
        context.forms.inputs(*place, command.inputs)
    wish = {name: getattr(command, name) for name in ("form", "tolerance", "agreement")}
    context.forms.set(*place, wish, by=author, inputs=command.inputs)
    if command.form != PLAIN or context.hosts.is_loaded(component.id):
        context.hosts.reload(component)
    return context.forms.told(component)


def show(context: Context, command: commands.ShowForm) -> dict[str, Any]:
    """The wish, and what became of it for the live version."""
    component = context.registry.get(command.collection, "model", command.name)
    return context.forms.told(component)


# At registration -------------------------------------------------------------------------------


def wish_of(context: Context, command: commands.RegisterComponent) -> Wish | None:
    """What a registration wishes for, with inputs; None if it says nothing.

    Raises InvalidInput for what is no model, and without a sample.
    """
    if command.form is None:
        return None
    if command.kind != "model":
        raise InvalidInput("form: only models have forms")
    place = command.collection, command.name
    sample = [command.sample] if command.has_sample else None
    inputs = [] if command.form == PLAIN else context.forms.inputs(*place, sample=sample)
    defaults = commands.SetForm.model_fields
    beside = {name: defaults[name].default for name in ("tolerance", "agreement")}
    return {"form": command.form, **beside, "inputs": inputs}


def keep(
    context: Context,
    command: commands.RegisterComponent,
    component: Component,
    wish: Wish | None,
    report: dict[str, Any] | None,
    author: str,
) -> None:
    """Keep a model's sample, what its registration wishes for, and what became of that."""
    place = command.collection, command.name
    if command.has_sample:
        context.forms.keep_sample(*place, command.sample)
    if wish is not None:
        bare = {name: value for name, value in wish.items() if name != "inputs"}
        kept = context.forms.set(*place, bare, by=author)
        if report is not None:
            context.forms.of(component).report(kept, report)
