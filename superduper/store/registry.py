"""Components by name and version: versions never change, one of them is live."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from superduper.errors import NotFound
from superduper.fields.sealing import Sealed
from superduper.store.artifacts import ArtifactStore
from superduper.store.mongo import server_now_ms

NAME = "superduper.components"


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

    @property
    def id(self) -> str:
        """The document's `_id`: `<collection>/<kind>/<name>@<version>`."""
        return f"{head_id(self.collection, self.kind, self.name)}@{self.version}"

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Component":
        """The component of a document read from the database."""
        return cls(**{name: document[name] for name in cls.__dataclass_fields__})

    def to_document(self) -> dict[str, Any]:
        """The document that keeps it."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"_id": self.id, "head": False, **fields}


def head_id(collection: str, kind: str, name: str) -> str:
    """The `_id` of the document that says which version is live."""
    return f"{collection}/{kind}/{name}"


class Registry:
    """The components of one database."""

    def __init__(self, database: Database[Any], artifacts: ArtifactStore) -> None:
        self._database = database
        self._documents = database[NAME]
        self._artifacts = artifacts
        self._indexed = False

    # Registering -----------------------------------------------------------------------------

    def draft(
        self, collection: str, kind: str, name: str, sealed: Sealed, author: str
    ) -> Component:
        """A component whose artifact is kept, but which has no version yet and is in no list."""
        artifact = self._artifacts.put_code(
            sealed, collection=collection, kind=kind, name=name, author=author
        )
        details = {"type": sealed.type, "source": sealed.source, "format": sealed.format}
        now = server_now_ms(self._database)
        return Component(collection, kind, name, 0, artifact, None, artifact, now, author, details)

    def find_same(self, draft: Component) -> Component | None:
        """The version that has the same content, if there is one."""
        found = self._documents.find_one(
            {
                "collection": draft.collection,
                "kind": draft.kind,
                "name": draft.name,
                "content": draft.content,
            }
        )
        if found is None:
            return None
        component = Component.of(found)
        self._lead(component, live=False)
        return component

    def commit(
        self, draft: Component, details: Mapping[str, Any] | None = None, *, live: bool = True
    ) -> Component:
        """Give a draft the next version, unless its content has one; it becomes live if asked."""
        self._index()
        draft = replace(draft, details={**draft.details, **(details or {})})
        while True:
            component = replace(draft, version=self._latest(draft) + 1)
            try:
                self._documents.insert_one(component.to_document())
            except DuplicateKeyError:
                same = self.find_same(draft)
                if same is not None:
                    return same
                continue  # somebody else took the number
            self._lead(component, live=live)
            return component

    def register(
        self,
        collection: str,
        kind: str,
        name: str,
        sealed: Sealed,
        *,
        author: str,
        details: Mapping[str, Any] | None = None,
    ) -> Component:
        """Keep a sealed object under a name: other content is a new version, the same is none."""
        draft = self.draft(collection, kind, name, sealed, author)
        return self.find_same(draft) or self.commit(draft, details)

    def publish_weights(
        self,
        collection: str,
        name: str,
        base_version: int,
        weights_blob: bytes,
        origin: Mapping[str, Any],
    ) -> Component:
        """A new version of a model: the code of one version with other weights; not live yet."""
        base = self.get(collection, "model", name, base_version)
        author = str(origin.get("imputation", base.created_by))
        weights = self._artifacts.put_weights(
            weights_blob, collection=collection, name=name, author=author
        )
        content = sha256(f"{base.artifact}+{weights}".encode()).hexdigest()
        draft = replace(
            base,
            weights=weights,
            content=content,
            origin=dict(origin),
            created_at=server_now_ms(self._database),
            created_by=author,
        )
        return self.commit(draft, live=False)

    def _index(self) -> None:
        if not self._indexed:
            keys = [("collection", 1), ("kind", 1), ("name", 1), ("content", 1)]
            self._documents.create_index(keys, unique=True)
            self._indexed = True

    def _latest(self, component: Component) -> int:
        where = {
            "collection": component.collection,
            "kind": component.kind,
            "name": component.name,
            "head": False,
        }
        newest = list(self._documents.find(where, {"version": 1}).sort("version", -1).limit(1))
        return int(newest[0]["version"]) if newest else 0

    def _lead(self, component: Component, *, live: bool) -> None:
        """See that the head knows a version; a crash may have come between the two writes."""
        where = head_id(component.collection, component.kind, component.name)
        names = {
            "head": True,
            "collection": component.collection,
            "kind": component.kind,
            "name": component.name,
        }
        change: dict[str, Any] = {"$max": {"latest": component.version}}
        if live:
            change["$set"] = {"live": component.version}
            change["$setOnInsert"] = names
        else:
            change["$setOnInsert"] = {**names, "live": component.version}
        self._documents.update_one({"_id": where}, change, upsert=True)

    # Reading ---------------------------------------------------------------------------------

    def get(self, collection: str, kind: str, name: str, version: int | None = None) -> Component:
        """A version of a component; the live one if none is given.

        Raises NotFound that names what there is.
        """
        where = head_id(collection, kind, name)
        head = self._documents.find_one({"_id": where, "head": True})
        if head is None:
            raise NotFound(self._missing(collection, kind, name))
        wanted = version if version is not None else head["live"]
        document = self._documents.find_one({"_id": f"{where}@{wanted}"})
        if document is None:
            raise NotFound(
                f"{kind} {name!r} of collection {collection!r} has no version {wanted}; "
                f"the latest is {head['latest']}"
            )
        return Component.of(document)

    def _missing(self, collection: str, kind: str, name: str) -> str:
        names = [row["name"] for row in self.list(collection, kind)]
        near = difflib.get_close_matches(name, names, n=3)
        if near:
            hint = f"; did you mean {' or '.join(repr(each) for each in near)}?"
        elif names:
            hint = f"; there are: {', '.join(names[:10])}"
        else:
            hint = f"; it has no {kind} yet"
        return f"collection {collection!r} has no {kind} {name!r}{hint}"

    def list(self, collection: str, kind: str) -> list[dict[str, Any]]:
        """The components of a kind, with their live and latest versions."""
        where = {"collection": collection, "kind": kind, "head": True}
        rows = []
        for head in self._documents.find(where).sort("name", 1):
            live = self._documents.find_one({"_id": f"{head['_id']}@{head['live']}"}) or {}
            rows.append(
                {
                    "name": head["name"],
                    "live": head["live"],
                    "latest": head["latest"],
                    "type": live.get("details", {}).get("type"),
                    "created_at": live.get("created_at"),
                    "created_by": live.get("created_by"),
                }
            )
        return rows

    # Changing --------------------------------------------------------------------------------

    def set_live(self, collection: str, kind: str, name: str, version: int) -> None:
        """Make a version the live one.

        Raises NotFound if there is no such version.
        """
        self.get(collection, kind, name, version)
        where = head_id(collection, kind, name)
        self._documents.update_one({"_id": where}, {"$set": {"live": version}})

    def delete(self, collection: str, kind: str, name: str, version: int | None = None) -> None:
        """Delete a version, or all; the caller has checked that nothing uses it.

        Deleting the live version makes the newest of the others live.
        """
        where = head_id(collection, kind, name)
        names = {"collection": collection, "kind": kind, "name": name}
        if version is not None:
            component = self.get(collection, kind, name, version)
            self._documents.delete_one({"_id": component.id})
            newest = self._latest(component)
            if newest:
                self._documents.update_one(
                    {"_id": where, "live": version}, {"$set": {"live": newest}}
                )
                return
        self._documents.delete_one({"_id": where})
        self._documents.delete_many({**names, "head": False})

    # Loading ---------------------------------------------------------------------------------

    def payload(self, component: Component) -> dict[str, Any]:
        """What `superduper.store.unsealing.load` needs, as plain BSON values; verified here too."""
        weights = None
        if component.weights is not None:
            weights = self._artifacts.fetch(component.weights).to_dict()
        return {
            **self._artifacts.fetch(component.artifact).to_dict(),
            "weights": weights,
            "public_keys": self._artifacts.keyring.public_keys(),
        }
