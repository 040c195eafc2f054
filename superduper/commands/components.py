"""Commands about components: register, list, show, delete."""

from typing import Any

from superduper.command import COLLECTION, Document, Kind, Name, OnCollection, Route, Version


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
