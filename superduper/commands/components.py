"""Commands about components: register, list, show, delete."""

from typing import Annotated, Any, Literal

from pydantic import Field

from superduper.command import COLLECTION, Document, Kind, Name, OnCollection, Route, Version

FormName = Literal["plain", "bf16", "int8", "onnx", "compiled", "auto"]


class RegisterComponent(OnCollection):
    """Register a sealed object under a name: other content makes a new version, the same none."""

    route = Route(
        "PUT", f"{COLLECTION}/{{kinds}}/{{name}}", role="trainer", status=201, takes_long=True
    )
    kind: Kind
    name: Name
    sealed: Document
    sample: Any = None
    has_sample: bool = False
    form: FormName | None = None


class ListComponents(OnCollection):
    """The components of one kind."""

    route = Route("GET", f"{COLLECTION}/{{kinds}}")
    kind: Kind


class ShowComponent(OnCollection):
    """One component: the live version, or the one asked for."""

    route = Route("GET", f"{COLLECTION}/{{kinds}}/{{name}}")
    kind: Kind
    name: Name
    version: Version | None = None


class DeleteComponent(OnCollection):
    """Delete a component, or one version of it; refused while something uses it."""

    route = Route("DELETE", f"{COLLECTION}/{{kinds}}/{{name}}", role="trainer")
    kind: Kind
    name: Name
    version: Version | None = None


# Faster forms of a model ------------------------------------------------------------------------

_FORM = f"{COLLECTION}/models/{{name}}/form"


class SetForm(OnCollection):
    """Have servers answer with a faster form of a model, if it agrees with the plain one.

    `auto` takes the fastest that does, `plain` is the way back. They are compared on `inputs` (else
    those of an earlier such command) and on the model's sample. `tolerance` is the largest
    difference of two numbers, as a part of the largest number in that place; `agreement` the share
    of inputs whose labels must be the same (0.99): if told, the place of the largest number in a
    row is a label too.
    """

    route = Route("PUT", _FORM, role="trainer", takes_long=True)
    name: Name
    form: FormName
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    agreement: Annotated[float, Field(gt=0, le=1)] | None = None
    inputs: Annotated[list[Any], Field(min_length=1, max_length=256)] | None = None


class ShowForm(OnCollection):
    """Which form of a model is wished for, and how it did beside the plain one."""

    route = Route("GET", _FORM)
    name: Name
