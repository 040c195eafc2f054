"""Which form of a model is wished for, on which inputs it is compared, and what became of it."""

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import bson
from pymongo.database import Database

from superduper.errors import InvalidInput
from superduper.store.component import Component, head_id
from superduper.store.mongo import database_errors, server_now_ms

NAME = "superduper.forms"
PLAIN = "plain"
INPUTS_BYTES = 8 << 20
_PARTS = ("inputs", "sample")
_SHOWN = ("form", "tolerance", "agreement", "set_at", "set_by")


class Forms:
    """The wishes of one database: one for each model, for all of its versions."""

    def __init__(self, database: Database[Any]) -> None:
        self._database = database
        self._forms = database[NAME]

    def keep_sample(self, collection: str, name: str, sample: Any) -> None:
        """Keep the input that a model was registered with, unless it is very large."""
        packed = _packed([sample])
        if len(packed) <= INPUTS_BYTES:
            where = {"_id": head_id(collection, "model", name)}
            self._forms.update_one(where, {"$set": {"sample": packed}}, upsert=True)

    def inputs(
        self,
        collection: str,
        name: str,
        inputs: Sequence[Any] | None = None,
        sample: Sequence[Any] | None = None,
    ) -> list[Any]:
        """What a model's forms are compared on, if these take the place of what is kept.

        Raises InvalidInput if there is nothing, or if it is too large.
        """
        known = self._get(collection, name)
        for part, given in (("inputs", inputs), ("sample", sample)):
            known = known if given is None else {**known, part: _packed(given)}
        if sum(len(known.get(part) or b"") for part in _PARTS) > INPUTS_BYTES:
            raise InvalidInput(f"the inputs to compare on take more than {INPUTS_BYTES >> 20} MiB")
        found = _inputs(known)
        if not found:
            raise InvalidInput(
                f"a faster form of model {name!r} is compared with the plain one on inputs: give "
                "some (inputs=[...]), or register the model with a sample"
            )
        return found

    def set(
        self,
        collection: str,
        name: str,
        wish: Mapping[str, Any],
        *,
        by: str,
        inputs: Sequence[Any] | None = None,
    ) -> dict[str, Any]:
        """Wish for a form (`form`, `tolerance`, `agreement`) in the place of the one before.

        Inputs take the place of those that are kept. Answers with the wish as it is kept.
        """
        where = {"_id": head_id(collection, "model", name)}
        kept = {**wish, "set_at": server_now_ms(self._database), "set_by": by}
        more = {} if inputs is None else {"inputs": _packed(inputs)}
        self._forms.update_one(where, {"$set": {**kept, **more, "reports": {}}}, upsert=True)
        return kept

    def of(self, component: Component) -> "Wishes":
        """The wishes for one version of a model."""
        return Wishes(self._forms, component)

    def told(self, component: Component) -> dict[str, Any]:
        """What users see: the wish, and what became of it when this version was last loaded."""
        known = self._get(component.collection, component.name)
        shown = {name: known.get(name) for name in _SHOWN}
        report = (known.get("reports") or {}).get(str(component.version))
        return {**shown, "form": known.get("form") or PLAIN, "report": report}

    def serving(self, collection: str) -> dict[tuple[str, int], str]:
        """By name and version, the form that served when a model was last loaded."""
        start = head_id(collection, "model", "")
        where = {"_id": {"$gte": start, "$lt": start + "\U0010ffff"}}
        return {
            (row["_id"].removeprefix(start), int(version)): report["serves"]
            for row in self._forms.find(where, {"reports": 1})
            for version, report in (row.get("reports") or {}).items()
        }

    def delete(self, collection: str, name: str) -> None:
        """Forget a model's."""
        self._forms.delete_one({"_id": head_id(collection, "model", name)})

    def _get(self, collection: str, name: str) -> dict[str, Any]:
        return self._forms.find_one({"_id": head_id(collection, "model", name)}) or {}


class Wishes:
    """The wish for one version of a model: for who loads it."""

    def __init__(self, forms: Any, component: Component) -> None:
        self._forms = forms
        self._where = {"_id": component.id.rpartition("@")[0]}
        self._version = component.version

    def get(self) -> dict[str, Any] | None:
        """The wish with its inputs; None for the plain form."""
        with database_errors():
            known = self._forms.find_one(self._where) or {}
        if known.get("form", PLAIN) == PLAIN:
            return None
        return {**known, "inputs": _inputs(known)}

    @property
    def set_at(self) -> int | None:
        """When it was set, in ms since the epoch; None for the plain form."""
        with database_errors():
            known = self._forms.find_one(self._where, {"form": 1, "set_at": 1}) or {}
        return None if known.get("form", PLAIN) == PLAIN else known["set_at"]

    def report(self, wish: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Keep what became of a wish here, unless another has taken its place."""
        told = {**report, "on": socket.gethostname()}
        where = {**self._where, "set_at": wish["set_at"]}
        with database_errors():
            self._forms.update_one(where, {"$set": {f"reports.{self._version}": told}})


def _packed(inputs: Sequence[Any]) -> bytes:
    return bson.encode({"inputs": list(inputs)})


def _inputs(known: Mapping[str, Any]) -> list[Any]:
    packed = [known[part] for part in _PARTS if known.get(part)]
    return [each for part in packed for each in bson.decode(part)["inputs"]]
