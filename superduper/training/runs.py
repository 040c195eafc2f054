"""Runs as the database keeps them: one document per training, with hashes, history and result."""

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import ASCENDING
from pymongo.database import Database

from superduper.errors import NotFound
from superduper.store.mongo import server_now_ms

# A run's history stays far below a document's size limit: of longer ones the latest rows are kept.
HISTORY_ROWS = 5_000
# A run in a list comes without its history.
_SHORT = {"history": 0, "steps": 0}

Listing = list[dict[str, Any]]


class Runs:
    """The collection `superduper.runs` of one database."""

    def __init__(self, database: Database[Any]) -> None:
        self.database = database
        self.documents = database["superduper.runs"]

    def begin(self, fields: Mapping[str, Any]) -> str:
        """Record that a run has started; answers its id."""
        run_id = uuid.uuid4().hex
        self._index()
        self.documents.insert_one(
            {
                "version": None,
                "weights": None,
                "model_version": None,
                "history": [],
                "steps": [],
                "best": None,
                "metrics": {},
                "skipped": {"count": 0, "first": []},
                "parent": None,
                **fields,
                "_id": run_id,
                "status": "running",
                "started_at": server_now_ms(self.database),
                "finished_at": None,
                "seconds": None,
            }
        )
        return run_id

    def _index(self) -> None:
        for keys in (["imputation", "version"], ["job"], ["started_at"]):
            self.documents.create_index([(key, ASCENDING) for key in keys])

    def update(self, run_id: str, **fields: Any) -> None:
        """Set fields of a run."""
        self.documents.update_one({"_id": run_id}, {"$set": fields})

    def append(
        self,
        run_id: str,
        rows: Sequence[Mapping[str, Any]],
        steps: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Add rows to a run's history: of epochs, and of steps."""
        pushed = {
            key: {"$each": [dict(row) for row in added], "$slice": -HISTORY_ROWS}
            for key, added in (("history", rows), ("steps", steps))
            if added
        }
        if pushed:
            self.documents.update_one({"_id": run_id}, {"$push": pushed})

    def take_over(self, run_id: str, earlier: str, epochs: int, step: int) -> None:
        """Give a run the history that another one had, from which it goes on after a step.

        `epochs` are done there. Steps do not tell: after its last one an epoch is not over.
        """
        past = self.get(earlier)
        kept = {
            "history": [row for row in past["history"] if row["epoch"] <= epochs],
            "steps": [row for row in past["steps"] if row["step"] <= step],
        }
        self.update(run_id, resumed_from={"run": earlier, "step": step}, **kept)

    def finish(self, run_id: str, status: str, **fields: Any) -> None:
        """Record how a run ended: succeeded, failed or cancelled."""
        now = server_now_ms(self.database)
        begun = self.documents.find_one({"_id": run_id}, {"started_at": 1}) or {"started_at": now}
        seconds = (now - begun["started_at"]) / 1000
        ended = {**fields, "status": status, "finished_at": now, "seconds": seconds}
        self.documents.update_one({"_id": run_id, "status": "running"}, {"$set": ended})

    def reopen(self, run_id: str, epochs: int, step: int) -> None:
        """Go on with a run after a step, so many epochs being done; what came later comes again."""
        later = {"history": {"epoch": {"$gt": epochs}}, "steps": {"step": {"$gt": step}}}
        self.documents.update_one(
            {"_id": run_id},
            {
                "$set": {"status": "running", "finished_at": None},
                "$pull": later,
            },
        )

    def abandon(self, job_id: str, reason: str) -> Listing:
        """Mark what earlier attempts of a job left running as failed; answer all, oldest first."""
        left = list(self.documents.find({"job": job_id}, _SHORT).sort("started_at", 1))
        for run in left:
            self.finish(run["_id"], "failed", error={"type": "Abandoned", "message": reason})
        return left

    def get(self, run_id: str) -> dict[str, Any]:
        """One run with its history.

        Raises NotFound if there is none of that id.
        """
        run = self.documents.find_one({"_id": run_id})
        if run is None:
            raise NotFound(f"there is no run {run_id!r}; `runs()` lists them")
        return dict(run)

    def of_version(self, imputation: str, version: int) -> dict[str, Any] | None:
        """The finished run that made a version of an imputation, without its history."""
        made = {"imputation": imputation, "version": version, "status": "succeeded"}
        found = self.documents.find_one(made, _SHORT)
        return None if found is None else dict(found)

    def of_imputation(self, imputation: str, limit: int = 50) -> Listing:
        """The runs of an imputation without their histories, newest first."""
        found = self.documents.find({"imputation": imputation}, _SHORT)
        return [dict(run) for run in found.sort([("started_at", -1), ("_id", 1)]).limit(limit)]

    def list(self, collection: str | None = None, limit: int = 50) -> Listing:
        """Runs without their histories, newest first."""
        filter = {} if collection is None else {"collection": collection}
        found = self.documents.find(filter, _SHORT).sort([("started_at", -1), ("_id", 1)])
        return [dict(run) for run in found.limit(limit)]

    def highscores(
        self, collection: str | None = None, metric: str | None = None, limit: int = 50
    ) -> Listing:
        """Finished runs, best first within each group of equal test data.

        Runs are comparable where `test_hash` is equal: those of one group stand together, each with
        its `rank` there, the group with the newest run first. Without `metric`, each is ranked by
        what it watched.
        """
        filter: dict[str, Any] = {"status": "succeeded", "scored.hash": {"$exists": True}}
        if collection is not None:
            filter["collection"] = collection
        if metric is not None:
            filter[f"metrics.{metric}"] = {"$exists": True}
        found = self.documents.find(filter, _SHORT).sort("started_at", -1).limit(10 * limit)
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for run in found:
            by = metric or run["settings"]["watch"]
            groups.setdefault((run["scored"]["hash"], by), []).append(_score(run, by))
        ranked = [
            {"rank": rank, **row}
            for rows in groups.values()
            for rank, row in enumerate(sorted(rows, key=_order), 1)
        ]
        return ranked[:limit]


def _score(run: Mapping[str, Any], metric: str) -> dict[str, Any]:
    scored = run["scored"]
    return {
        "run": run["_id"],
        "collection": run["collection"],
        "imputation": run["imputation"],
        "name": run.get("name"),
        "version": run["version"],
        "metric": metric,
        "value": run["metrics"].get(metric),
        "higher_is_better": run.get("higher_is_better", {}).get(metric, metric != "loss"),
        "test_hash": scored["hash"],
        "test_fold": scored["fold"],
        "test_n": scored["n"],
        "finished_at": run["finished_at"],
    }


def _order(row: Mapping[str, Any]) -> float:
    value = row["value"]
    if value is None or math.isnan(value):
        return math.inf
    return -value if row["higher_is_better"] else float(value)
