"""Imputations as the database keeps them: one document each, changed by single atomic updates.

Two families of paths, because they can differ:
- `target_paths`: the fields whose values are the labels of a fit (the `target_key`);
- `write_paths`: the fields that the watcher fills. The same, unless `fill=False`: then
  `_outputs.<model_key>.<model>`, as for a plain watcher.
The path `_base` among `input_paths` stands for the whole document.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from superduper.errors import AlreadyExists, InvalidInput, NotFound
from superduper.fields.paths import overlap
from superduper.imputations.clashes import check_fields
from superduper.imputations.provenance import BASE

HISTORY_LENGTH = 100


@dataclass(frozen=True)
class ImputationRecord:
    """An imputation or watcher, as read at one moment."""

    collection: str
    name: str
    kind: str
    spec: Mapping[str, Any]
    input_paths: tuple[str, ...]
    target_paths: tuple[str, ...]
    write_paths: tuple[str, ...]
    created_at: int
    created_by: str
    latest: int = 0
    active: int | None = None
    active_component: tuple[str, int] | None = None
    paused: bool = False
    error: Mapping[str, Any] | None = None
    fit_job: str | None = None
    scan: Mapping[str, Any] = field(default_factory=dict)
    fence: int = 0
    history: tuple[Mapping[str, Any], ...] = ()

    @property
    def id(self) -> str:
        """The document's `_id`: `<collection>/<name>`."""
        return f"{self.collection}/{self.name}"

    @property
    def hidden_paths(self) -> tuple[str, ...]:
        """What a model that reads the whole document does not get to see: what it predicts."""
        return tuple(dict.fromkeys(self.write_paths + self.target_paths))

    def reads(self, path: str) -> bool:
        """Whether a field is among what the model is given."""
        if BASE in self.input_paths:
            return not any(overlap(path, hidden) for hidden in self.hidden_paths)
        return any(overlap(path, source) for source in self.input_paths)

    @property
    def trained(self) -> bool:
        """Whether there is something to train: a loss, or a trainer with steps of its own."""
        return self.spec.get("loss") is not None or self.spec.get("trainer") is not None

    @property
    def refilled(self) -> int | None:
        """The version whose values the live one is to replace, if that was asked for."""
        return self.scan.get("refill")

    @property
    def watched(self) -> bool:
        """Whether a watcher belongs to it."""
        return bool(self.spec.get("watcher", True))

    @property
    def filling(self) -> bool:
        """Whether a watcher should be at work now."""
        return self.watched and self.active is not None and not self.paused

    @property
    def status(self) -> str:
        """fitting, filling (what is there), watching, ready (unwatched), paused, failed."""
        if self.active is None:
            return "failed" if self.error else "fitting"
        if not self.watched:
            return "ready"
        if self.paused:
            return "paused"
        return "watching" if self.scan.get("state") == "done" else "filling"

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "ImputationRecord":
        """The record of a document read from the database."""
        component = document.get("active_component")
        return cls(
            collection=document["collection"],
            name=document["name"],
            kind=document["kind"],
            spec=document["spec"],
            input_paths=tuple(document["input_paths"]),
            target_paths=tuple(document["target_paths"]),
            write_paths=tuple(document["write_paths"]),
            created_at=document["created_at"],
            created_by=document["created_by"],
            latest=document.get("latest", 0),
            active=document.get("active"),
            active_component=(component["name"], component["version"]) if component else None,
            paused=document.get("paused", False),
            error=document.get("error"),
            fit_job=document.get("fit_job"),
            scan=document.get("scan") or {},
            fence=document.get("fence", 0),
            history=tuple(document.get("history", ())),
        )


class Imputations:
    """The collection `superduper.imputations` of one database."""

    def __init__(self, database: Database[Any]) -> None:
        self.database = database
        self.documents = database["superduper.imputations"]

    # Reading ---------------------------------------------------------------------------------

    def get(self, collection: str, name: str) -> ImputationRecord:
        """The imputation of that name.

        Raises NotFound that lists the names there are.
        """
        document = self.documents.find_one({"_id": f"{collection}/{name}"})
        if document is None:
            names = sorted(record.name for record in self.find(collection))
            there = f"there are: {', '.join(names[:10])}" if names else "it has none yet"
            raise NotFound(f"collection {collection!r} has no imputation {name!r}; {there}")
        return ImputationRecord.of(document)

    def find(self, collection: str | None = None) -> list[ImputationRecord]:
        """All imputations, or those of one collection, in order of creation."""
        filter = {} if collection is None else {"collection": collection}
        found = self.documents.find(filter).sort([("created_at", 1), ("_id", 1)])
        return [ImputationRecord.of(document) for document in found]

    # Creating and deleting -------------------------------------------------------------------

    def create(self, record: ImputationRecord) -> ImputationRecord:
        """Write a new imputation.

        Its versions go on from those of an earlier one of that name, whose values may still be
        there: a number stands for one version only.
        Raises AlreadyExists if the name is taken, InvalidInput if its fields clash with another's.
        """
        check_fields(record, self.find(record.collection))
        document = {
            "_id": record.id,
            "collection": record.collection,
            "name": record.name,
            "kind": record.kind,
            "spec": dict(record.spec),
            "input_paths": list(record.input_paths),
            "target_paths": list(record.target_paths),
            "write_paths": list(record.write_paths),
            "created_at": record.created_at,
            "created_by": record.created_by,
            "latest": self._last_version(record),
            "active": None,
            "paused": False,
            "error": None,
            "fit_job": None,
            "scan": {},
            "history": [],
        }
        try:
            self.documents.insert_one(document)
        except DuplicateKeyError as error:
            raise AlreadyExists(
                f"collection {record.collection!r} already has an imputation {record.name!r} with "
                "other settings: delete it first, or choose another name"
            ) from error
        # Who was filling when an earlier one was deleted may have noted something after that.
        self._forget(record)
        return record

    def _last_version(self, record: ImputationRecord) -> int:
        made = {"imputation": record.id, "version": {"$gte": 1}}
        runs = self.database["superduper.runs"]
        run = runs.find_one(made, {"version": 1}, sort=[("version", -1)])
        return 0 if run is None else int(run["version"])

    def delete(self, record: ImputationRecord) -> None:
        """Forget an imputation and its failures; documents and versions stay."""
        self.documents.delete_one({"_id": record.id})
        self._forget(record)

    def _forget(self, record: ImputationRecord) -> None:
        for name in ("failures", "layers", "corrections", "ranges"):
            self.database[f"superduper.{name}"].delete_many({"imputation": record.id})
        self.database["superduper.tallies"].delete_one({"_id": record.id})

    # Changing --------------------------------------------------------------------------------

    def next_version(self, record: ImputationRecord) -> int:
        """A version number nobody else gets."""
        document = self.documents.find_one_and_update(
            {"_id": record.id}, {"$inc": {"latest": 1}}, return_document=True
        )
        if document is None:
            raise NotFound(f"imputation {record.id!r} was deleted")
        return int(document["latest"])

    def set_fit(self, record: ImputationRecord, job: str | None) -> None:
        """Note the job that fits a new version, or that none does."""
        self.documents.update_one({"_id": record.id}, {"$set": {"fit_job": job}})

    def set_error(self, record: ImputationRecord, error: Mapping[str, Any] | None) -> None:
        """Note why the last fit failed, or that it did not."""
        self.documents.update_one({"_id": record.id}, {"$set": {"error": error}})

    def set_paused(self, record: ImputationRecord, paused: bool, *, now: int) -> None:
        """Stop or resume filling; resuming scans for what was missed."""
        change: dict[str, Any] = {"paused": paused}
        if not paused and record.active is not None:
            change["scan"] = _pending(record.active, now, record.refilled)
        self.documents.update_one({"_id": record.id}, {"$set": change})

    def activate(
        self,
        collection: str,
        name: str,
        version: int,
        *,
        by: str,
        reason: str,
        model_version: int | None = None,
        now: int | None = None,
        refill: int | None = None,
    ) -> None:
        """Make a version the live one and ask for a scan, in one atomic step.

        `model_version` is looked up in the version's run when it is not given. The values that
        the version `refill` wrote are replaced; without it values that are there stay.
        Raises NotFound if the imputation or the version does not exist.
        """
        record = self.get(collection, name)
        if model_version is None:
            model_version = self.model_version(record, version)
        at = now if now is not None else self._now()
        entry = {"version": version, "at": at, "by": by, "reason": reason}
        self.documents.update_one(
            {"_id": record.id},
            {
                "$set": {
                    "active": version,
                    "active_component": {"name": record.spec["model"], "version": model_version},
                    "error": None,
                    "scan": _pending(version, at, refill),
                },
                "$push": {"history": {"$each": [entry], "$slice": -HISTORY_LENGTH}},
            },
        )

    def model_version(self, record: ImputationRecord, version: int) -> int:
        """The version of the model behind a version of an imputation.

        Raises NotFound if there is no such version, InvalidInput if its fit did not succeed or it
        was made for an earlier declaration, which had another model.
        """
        run = self.database["superduper.runs"].find_one(
            {"imputation": record.id, "version": version},
            {"model_version": 1, "status": 1, "settings.model": 1},
        )
        if run is None:
            raise NotFound(f"imputation {record.id!r} has no version {version}: see versions()")
        if run.get("status") != "succeeded" or run.get("model_version") is None:
            raise InvalidInput(
                f"version {version} of imputation {record.id!r} cannot go live: its fit is "
                f"{run.get('status')}; see versions(), or refit()"
            )
        if (model := run["settings"]["model"]) != record.spec["model"]:
            raise InvalidInput(
                f"version {version} of imputation {record.id!r} cannot go live: it was made for an "
                f"earlier declaration, with the model {model!r} and not {record.spec['model']!r}"
            )
        return int(run["model_version"])

    def _now(self) -> int:
        return int(self.database.command("hello")["localTime"].timestamp() * 1000)

    def set_scan(self, record: ImputationRecord, **fields: Any) -> bool:
        """Change the scan's state; False if a newer scan was asked for in the meantime."""
        result = self.documents.update_one(
            {
                "_id": record.id,
                "scan.version": record.scan.get("version"),
                "scan.asked_at": record.scan.get("asked_at"),
            },
            {"$set": {f"scan.{key}": value for key, value in fields.items()}},
        )
        return result.matched_count == 1

    def replan(self, record: ImputationRecord, plan: Mapping[str, Any]) -> bool:
        """Cut a scan in another way; False if that, or another scan, was done in the meantime."""
        result = self.documents.update_one(
            {
                "_id": record.id,
                "scan.version": record.scan.get("version"),
                "scan.asked_at": record.scan.get("asked_at"),
                "scan.plan": record.scan.get("plan"),
            },
            {"$set": {f"scan.{key}": value for key, value in plan.items()}},
        )
        return result.matched_count == 1

    def request_scan(
        self,
        collection: str,
        name: str | None = None,
        *,
        fence: int | None = None,
        trouble: str | None = None,
    ) -> None:
        """Ask every live imputation of a collection for a scan (the stream's history is lost).

        With the `fence` of the leader that asks, no leader before it may begin one. `trouble` is
        why the imputation could not be filled; it is shown until a scan has gone through.
        """
        filter: dict[str, Any] = {"collection": collection, "active": {"$ne": None}}
        if name is not None:
            filter["name"] = name
        if fence is not None:
            self.documents.update_many(filter, {"$set": {"fence": fence}})
        now = self._now()
        for document in self.documents.find(filter, {"active": 1, "scan.refill": 1}):
            self.documents.update_one(
                {"_id": document["_id"], "active": document["active"]},
                {
                    "$set": {
                        "scan": _pending(document["active"], now, _refill_of(document), trouble)
                    }
                },
            )


def _refill_of(document: Mapping[str, Any]) -> int | None:
    refill: int | None = (document.get("scan") or {}).get("refill")
    return refill


def _pending(
    version: int, now: int, refill: int | None = None, trouble: str | None = None
) -> dict[str, Any]:
    scan: dict[str, Any] = {"state": "pending", "version": version, "asked_at": now}
    scan |= {"seen": 0, "filled": 0}
    optional = {"refill": refill, "trouble": trouble}
    return scan | {name: value for name, value in optional.items() if value is not None}
