"""What a component is: one version of an object by name, as it is signed and as it is kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from superduper.errors import ArtifactRejected
from superduper.store.artifacts import Artifact
from superduper.store.records import COMPONENT

SIGNED = ("collection", "kind", "name", "version", "artifact", "weights", "content")


@dataclass(frozen=True)
class Component:
    """One version of a component."""

    collection: str
    kind: str
    name: str
    version: int
    artifact: str
    weights: str | None
    content: str
    created_at: int
    created_by: str
    details: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] | None = None
    domain: str | None = None
    key: str = ""
    signature: bytes = b""

    @property
    def id(self) -> str:
        """The document's `_id`: `<collection>/<kind>/<name>@<version>`."""
        return f"{head_id(self.collection, self.kind, self.name)}@{self.version}"

    @property
    def place(self) -> dict[str, str]:
        """The fields that all its versions have in common."""
        return {"collection": self.collection, "kind": self.kind, "name": self.name}

    @property
    def record(self) -> dict[str, Any]:
        """What is signed."""
        purpose = "code" if self.weights is None else "weights"
        signed = {name: getattr(self, name) for name in (*SIGNED, "created_by", "created_at")}
        if self.domain is not None:  # what was signed before there were any has no such field
            signed["domain"] = self.domain
        return {"schema": COMPONENT, "purpose": purpose, **signed}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Component":
        """The component of a document read from the database."""
        fields: dict[str, Any] = {name: document.get(name) for name in cls.__dataclass_fields__}
        return cls(**fields)

    def to_document(self) -> dict[str, Any]:
        """The document that keeps it."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"_id": self.id, "head": False, **fields}


@dataclass(frozen=True)
class Draft:
    """A component that is signed, but neither kept nor numbered: it may still be tried out."""

    component: Component
    artifacts: tuple[Artifact, ...]


def head_id(collection: str, kind: str, name: str) -> str:
    """The `_id` of the document that says which version is live."""
    return f"{collection}/{kind}/{name}"


def checked_component(
    document: Mapping[str, Any], collection: str, kind: str, name: str, version: int | None = None
) -> Component:
    """The component of a document found at a place.

    Raises ArtifactRejected if it is that of something else.
    """
    component = Component.of(document)
    wanted = component.version if version is None else version
    if component.id != f"{head_id(collection, kind, name)}@{wanted}":
        raise ArtifactRejected(
            f"{kind} {name!r}: the document of version {wanted} is that of something else"
        )
    return component
