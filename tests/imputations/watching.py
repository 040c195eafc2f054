"""Live imputations on a real store, models in real child processes, services that fill."""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pymongo.database import Database

from superduper.fields.sealing import seal
from superduper.imputations.hosting import open_hosts
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.watching.watch import WatchService
from superduper.store.artifacts import ArtifactStore
from superduper.store.component import Component
from superduper.store.registry import Registry
from superduper.store.signing import Keyring


class Watching:
    """A database with imputations that are live, as if their fits were done."""

    def __init__(self, database: Database[Any]) -> None:
        self.database = database
        self.docs = database["docs"]
        self.registry = Registry(database, ArtifactStore(database, Keyring.open()))
        self.imputations = Imputations(database)

    def register(self, model: Any, name: str = "model") -> Component:
        """Register a model, or another version of it."""
        sealed = seal({"object": model, "preprocess": None, "postprocess": None})
        return self.registry.register("docs", "model", name, sealed, author="test")

    def live(
        self,
        model: Any,
        inputs: tuple[str, ...] = ("x",),
        writes: tuple[str, ...] = ("y",),
        name: str = "imputation",
        **spec: Any,
    ) -> ImputationRecord:
        """Declare an imputation whose first version is this model."""
        component = self.register(model, f"{name}_model")
        defaults = {"on_input_change": "refill", "filter": None, "min_confidence": None}
        record = ImputationRecord(
            collection="docs",
            name=name,
            kind="imputation",
            spec={**defaults, "model": component.name, "watcher": True, **spec},
            input_paths=inputs,
            target_paths=writes,
            write_paths=writes,
            created_at=time.time_ns() // 1_000_000,
            created_by="test",
        )
        self.imputations.create(record)
        return self.promote(name, component, version=1)

    def promote(self, name: str, component: Component, version: int) -> ImputationRecord:
        """Make a version live."""
        self.imputations.activate(
            "docs", name, version, by="test", reason="test", model_version=component.version
        )
        return self.imputations.get("docs", name)

    def service(self) -> WatchService:
        """A service that fills, not running yet."""
        return WatchService(
            self.database, self.registry, lambda: open_hosts(self.registry), self.imputations
        )

    @contextmanager
    def running(self) -> Iterator[WatchService]:
        """A service that fills, in a thread of its own."""
        stop, service = threading.Event(), self.service()
        thread = threading.Thread(target=service.run, args=(stop,), name=uuid.uuid4().hex)
        thread.start()
        try:
            yield service
        finally:
            stop.set()
            thread.join(60)
            assert not thread.is_alive(), "the service does not stop"

    # What can be seen ------------------------------------------------------------------------

    def status(self, name: str = "imputation") -> str:
        """An imputation's status."""
        return self.imputations.get("docs", name).status

    def document(self, document_id: Any) -> dict[str, Any]:
        """A document, empty if it is not there."""
        found: dict[str, Any] | None = self.docs.find_one({"_id": document_id})
        return found or {}

    def failures(self, **wanted: Any) -> dict[Any, dict[str, Any]]:
        """The failures by document."""
        found = self.database["superduper.failures"].find(wanted)
        return {each["document"]: each for each in found}

    def watcher(self) -> dict[str, Any]:
        """What the leader of the collection has noted."""
        found: dict[str, Any] | None = self.database["superduper.watchers"].find_one(
            {"_id": "stream:docs"}
        )
        return found or {}


def double(value: Any) -> Any:
    return value * 2
