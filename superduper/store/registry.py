"""Components by name and version: versions never change, one of them is live.

A number is never given twice, even after deletion: what was filled by version 3 stays so.
"""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from superduper.errors import ArtifactRejected, NotFound
from superduper.fields.sealing import Sealed
from superduper.store.artifacts import ArtifactStore
from superduper.store.component import Component, Draft, checked_component, head_id
from superduper.store.mongo import database_errors, server_now_ms
from superduper.store.records import verify_component

NAME = "superduper.components"
MAX_LISTED = 1000


class Registry:
    """The components of one database."""

    def __init__(self, database: Database[Any], artifacts: ArtifactStore) -> None:
        self._database = database
        self._documents = database[NAME]
        self._artifacts = artifacts
        self._indexed = False

    # Registering -----------------------------------------------------------------------------

    def draft(self, collection: str, kind: str, name: str, sealed: Sealed, author: str) -> Draft:
        """A component of a sealed object, to look at or try out; nothing is kept yet."""
        artifact = self._artifacts.sign_code(
            sealed, collection=collection, kind=kind, name=name, author=author
        )
        details = {"type": sealed.type, "source": sealed.source, "format": sealed.format}
        component = Component(
            collection=collection,
            kind=kind,
            name=name,
            version=0,
            artifact=artifact.id,
            weights=None,
            content=artifact.id,
            created_at=server_now_ms(self._database),
            created_by=author,
            details=details,
        )
        return Draft(self._signed(component), (artifact,))

    def find_same(self, draft: Draft) -> Component | None:
        """The version that has the same content, if there is one; sound, or made so again.

        What is damaged, gone, or signed with a key that is not trusted any more is mended.
        """
        wanted = draft.component
        where = {**wanted.place, "head": False, "content": wanted.content}
        with database_errors():
            document = self._documents.find_one(where) or {}
            component = Component.of(document)
            if component.id != document.get("_id"):
                return None
            component = component if self._is_sound(component) else self._mend(component, draft)
            # A crash may have come between the version and its head.
            is_new = self._announced(component) < component.version
            self._announce(component, live=is_new and component.weights is None)
        return component

    def _is_sound(self, component: Component) -> bool:
        try:
            self.payload(component)
        except (ArtifactRejected, NotFound):
            return False
        return True

    def _mend(self, broken: Component, draft: Draft) -> Component:
        for artifact in draft.artifacts:
            self._artifacts.mend(artifact)
        details = {**(broken.details or {}), **draft.component.details}
        component = self._signed(replace(draft.component, version=broken.version, details=details))
        same = {"_id": broken.id, "signature": broken.signature}
        self._documents.replace_one(same, component.to_document())
        return component

    def commit(
        self, draft: Draft, details: Mapping[str, Any] | None = None, *, live: bool = True
    ) -> Component:
        """Keep a draft as the next version, live if asked; its version if its content has one."""
        wanted = replace(draft.component, details={**draft.component.details, **(details or {})})
        for artifact in draft.artifacts:
            self._artifacts.keep(artifact)
        with database_errors():
            self._index()
            component = self._insert(wanted, draft, live)
        for artifact in draft.artifacts:  # from here on they are referred to
            self._artifacts.keep(artifact)
        return component

    def _insert(self, wanted: Component, draft: Draft, live: bool) -> Component:
        version = 0
        while True:
            # The number first: whoever registers the same content in between has that number.
            version = max(version, self._latest(wanted)) + 1
            same = self.find_same(draft)
            if same is not None:
                return same
            component = self._signed(replace(wanted, version=version))
            try:
                self._documents.insert_one(component.to_document())
            except DuplicateKeyError:
                continue
            self._announce(component, live=live)
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
        domain_blob: bytes | None = None,
    ) -> Component:
        """A new version of a model: the code of one version with other weights; not live yet.

        `domain_blob` is what its inputs are compared with, a safetensors file like the weights.
        """
        base = self.get(collection, "model", name, base_version)
        author = str(origin.get("imputation", base.created_by))
        artifacts = tuple(
            self._artifacts.sign_weights(blob, collection=collection, name=name, author=author)
            for blob in (weights_blob, domain_blob)
            if blob is not None
        )
        ids = [artifact.id for artifact in artifacts]
        component = replace(
            base,
            version=0,
            weights=ids[0],
            domain=ids[1] if domain_blob is not None else None,
            content=sha256("+".join([base.artifact, *ids]).encode()).hexdigest(),
            origin=dict(origin),
            created_at=server_now_ms(self._database),
            created_by=author,
        )
        return self.commit(Draft(component, artifacts), live=False)

    def _signed(self, component: Component) -> Component:
        purpose = component.record["purpose"]
        key, signature = self._artifacts.keyring.sign(component.record, purpose)
        return replace(component, key=key, signature=signature)

    def _index(self) -> None:
        if not self._indexed:
            place = [("collection", 1), ("kind", 1), ("name", 1)]
            self._documents.create_index([*place, ("version", -1)])
            self._documents.create_index([*place, ("content", 1)])
            self._indexed = True

    def _latest(self, component: Component) -> int:
        """The highest number ever given to a name."""
        where = {**component.place, "head": False}
        newest = self._documents.find_one(where, {"version": 1}, sort=[("version", -1)]) or {}
        return max(self._announced(component), int(newest.get("version", 0)))

    def _announced(self, component: Component) -> int:
        """The highest number that the head knows of."""
        head = self._documents.find_one({"_id": head_id(**component.place)}) or {}
        latest = head.get("latest")
        return latest if isinstance(latest, int) else 0

    def _announce(self, component: Component, *, live: bool) -> None:
        """See that the head knows a version; with `live`, that no older one is live."""
        place = component.place
        changes: dict[str, Any] = {
            "$max": {"latest": component.version},
            "$set": {"head": True, **place},
        }
        if live:
            changes["$max"]["live"] = component.version
        where = {"_id": head_id(**place)}
        self._documents.update_one(where, changes, upsert=True)
        if not live:  # unless it is the first that the head hears of
            self._documents.update_one(
                {**where, "live": None}, {"$set": {"live": component.version}}
            )

    # Reading ---------------------------------------------------------------------------------

    def get(self, collection: str, kind: str, name: str, version: int | None = None) -> Component:
        """A version of a component; the live one if none is given.

        Raises NotFound that names what there is.
        """
        where = head_id(collection, kind, name)
        with database_errors():
            head = self._documents.find_one({"_id": where})
            if head is None or head.get("live") is None:
                raise NotFound(self._missing(collection, kind, name))
            wanted = version if version is not None else head["live"]
            document = self._documents.find_one({"_id": f"{where}@{wanted}"})
        if document is None:
            raise NotFound(
                f"{kind} {name!r} of collection {collection!r} has no version {wanted}: "
                f"{self._versions(collection, kind, name)}"
            )
        return checked_component(document, collection, kind, name, wanted)

    def _versions(self, collection: str, kind: str, name: str) -> str:
        where = {"collection": collection, "kind": kind, "name": name, "head": False}
        found = self._documents.find(where, {"version": 1}).sort("version", -1).limit(10)
        return f"there are {', '.join(str(each['version']) for each in found)}"

    def _missing(self, collection: str, kind: str, name: str) -> str:
        heads = self._documents.find(
            {"collection": collection, "head": True, "live": {"$ne": None}},
            {"name": 1, "kind": 1},
        ).limit(MAX_LISTED)
        found = [(head["kind"], head["name"]) for head in heads]
        names = sorted(other for of_kind, other in found if of_kind == kind)
        near = difflib.get_close_matches(name, names, n=3)
        if elsewhere := [of_kind for of_kind, other in found if other == name]:
            hint = f"there is a {elsewhere[0]} of that name"
        elif near:
            hint = f"did you mean {' or '.join(repr(each) for each in near)}?"
        elif names:
            hint = f"there are: {', '.join(names[:10])}" + ", ..." * (len(names) > 10)
        else:
            hint = f"it has no {kind} yet"
        return f"collection {collection!r} has no {kind} {name!r}; {hint}"

    def list(self, collection: str, kind: str) -> list[dict[str, Any]]:
        """The components of a kind by name, with their live and latest versions; 1000 at most."""
        where = {"collection": collection, "kind": kind, "head": True, "live": {"$ne": None}}
        shown = {"details.type": 1, "created_at": 1, "created_by": 1}
        with database_errors():
            heads = list(self._documents.find(where).sort("name", 1).limit(MAX_LISTED))
            ids = [f"{head['_id']}@{head['live']}" for head in heads]
            found = {
                each["_id"]: each for each in self._documents.find({"_id": {"$in": ids}}, shown)
            }
        return [_row(head, found.get(key, {})) for head, key in zip(heads, ids, strict=True)]

    def list_all(self, kind: str) -> tuple[tuple[str, str, int], ...]:
        """Collection, name and live version of every component of a kind; 1000 at most."""
        where = {"kind": kind, "head": True, "live": {"$ne": None}}
        with database_errors():
            heads = tuple(self._documents.find(where).sort("_id", 1).limit(MAX_LISTED))
        return tuple((head["collection"], head["name"], head["live"]) for head in heads)

    def versions(self, collection: str, kind: str, name: str) -> tuple[int, ...]:
        """The versions of a component, newest first; 1000 at most."""
        where = {"collection": collection, "kind": kind, "name": name, "head": False}
        with database_errors():
            found = self._documents.find(where, {"version": 1}).sort("version", -1)
            return tuple(each["version"] for each in found.limit(MAX_LISTED))

    # Changing --------------------------------------------------------------------------------

    def set_live(self, collection: str, kind: str, name: str, version: int) -> None:
        """Make a version the live one.

        Raises NotFound if there is no such version.
        """
        self.get(collection, kind, name, version)
        where = head_id(collection, kind, name)
        with database_errors():
            self._documents.update_one({"_id": where}, {"$set": {"live": version}})

    def delete(self, collection: str, kind: str, name: str, version: int | None = None) -> None:
        """Delete a version, or all; the caller has checked that nothing uses it.

        Deleting the live version makes the newest of the others live. What the versions were made
        of is left to garbage collection. Raises NotFound.
        """
        component = self.get(collection, kind, name, version)
        head, place = head_id(collection, kind, name), {**component.place, "head": False}
        with database_errors():
            if version is None:
                # The head stays and remembers the highest number.
                self._documents.update_one({"_id": head}, {"$set": {"live": None}})
                self._documents.delete_many(place)
                return
            others = {**place, "version": {"$ne": version}}
            newest = self._documents.find_one(others, {"version": 1}, sort=[("version", -1)])
            self._documents.update_one(
                {"_id": head, "live": version},
                {"$set": {"live": None if newest is None else newest["version"]}},
            )
            self._documents.delete_one({"_id": component.id})

    # Loading ---------------------------------------------------------------------------------

    def payload(self, component: Component | Draft) -> dict[str, Any]:
        """What `superduper.store.unsealing.load` needs, as plain BSON values; verified here too."""
        public_keys = self._artifacts.keyring.public_keys()
        weights = domain = None
        if isinstance(component, Draft):
            code, component = component.artifacts[0], component.component
        else:
            signed = {"record": component.record, "signature": component.signature}
            verify_component({**signed, "key": component.key}, public_keys)
            code = self._artifacts.fetch(component.artifact)
            if component.weights is not None:
                weights = self._artifacts.fetch(component.weights).to_dict()
            if component.domain is not None:
                domain = self._artifacts.fetch(component.domain).to_dict()
        return {
            **code.to_dict(),
            "weights": weights,
            "domain": domain,
            "component": {
                "record": component.record,
                "key": component.key,
                "signature": component.signature,
            },
            "public_keys": public_keys,
        }


def _row(head: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": head["name"],
        "live": head["live"],
        "latest": head["latest"],
        "type": live.get("details", {}).get("type"),
        "created_at": live.get("created_at"),
        "created_by": live.get("created_by"),
    }
