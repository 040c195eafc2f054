"""Documents that could not be filled: who, why, how often tried, and when to try again.

One record for each imputation and document, in `superduper.failures`. It belongs to one input and
one version: with another input or version everything begins anew. The states:

- `running`: an attempt has been counted and is under way, or its worker died in it;
- `retry`: it failed and is tried again when `next_at` has come;
- `dead`: it failed as often as is allowed;
- `withheld`: the model was not sure enough; not a failure, and nothing is retried;
- `no_value`: the model ran and answered that it has none (None); nothing is retried here either;
- `out_of_domain`: the input is unlike those of the training; nothing is retried here either;
- `put_off`: not tried, because what it is computed from is about to change; looked at again when
  `next_at` has come, if nothing else has brought it up by then;
- `cleared`: our value was removed when its input changed (`on_input_change: clear`);
- `reverted`: our value was taken back by a person (`revert`), and is not to come again by itself.

An attempt is counted before it is made, so that one which takes its worker along is counted too.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bson
from pymongo import DeleteOne, UpdateOne
from pymongo.collection import Collection
from pymongo.database import Database

from superduper import settings
from superduper.store.by_id import find_by_ids

MAX_ATTEMPTS = 3
BACKOFF_SECONDS = 2.0
PUT_OFF_SECONDS = 2.0
# What an attempt takes beside the time that its model is given.
ATTEMPT_MARGIN_SECONDS = 5.0
NAME = "superduper.failures"
PUT_OFF = "put_off"
WAITING = ("retry", "running", PUT_OFF)
TURNED_AWAY = ("withheld", "no_value", "out_of_domain")
TAKEN_BACK = ("cleared", "reverted")
# What is kept of an outcome that was not written.
OF_OUTCOME = ("confidence", "runner_up", "distance", "threshold")
_UNKNOWN = dict.fromkeys(OF_OUTCOME)
# Errors of documents that took the model's process, or a worker, along.
KILLED = ("ChildDied", "TimedOut", "TooLarge", "WorkerDied")
MESSAGE_LENGTH = 2000
TRACEBACK_LENGTH = 8000
SWEEP = 500
# Where there are no records at all, asking for so many costs no more than asking whether there are.
FEW = 32

Known = dict[bytes, dict[str, Any]]
"""Records by `key_of` the document's `_id`."""


@dataclass(frozen=True)
class Case:
    """A document with the input and the version that were tried on it."""

    document_id: Any
    input: str
    version: int


def key_of(document_id: Any) -> bytes:
    """A document's `_id`, whatever its type, as something that can be a key."""
    return bson.encode({"": document_id})


class Failures:
    """The failures of one imputation."""

    def __init__(self, database: Database[Any], imputation_id: str) -> None:
        self.imputation_id = imputation_id
        self.records: Collection[Any] = database[NAME]
        self._some = False

    def known(self, document_ids: Sequence[Any]) -> Known:
        """The records of these documents, by `key_of` their `_id`."""
        if len(document_ids) > FEW and not self._any():
            return {}
        found = self.records.find(self._those(document_ids))
        return {key_of(record["document"]): record for record in found}

    def _any(self) -> bool:
        """Whether there are records at all, as is known once there have been."""
        # The embedded store collects all that there are to answer with the first, so never again.
        if not self._some:
            found = self.records.find_one({"imputation": self.imputation_id}, {"_id": 1})
            self._some = found is not None
        return self._some

    def due(self, now: int, limit: int) -> list[dict[str, Any]]:
        """Records whose next attempt has come, the longest waiting first."""
        waiting = {
            "imputation": self.imputation_id,
            "state": {"$in": list(WAITING)},
            "next_at": {"$lte": now},
        }
        return list(self.records.find(waiting).sort("next_at", 1).limit(limit))

    def begin(self, case: Case, now: int) -> int:
        """Count an attempt before it is made; the number of attempts with this one."""
        record = self._begun(self._that(case.document_id), case, now, upsert=True)
        # Where it was dropped in the same moment, another worker has just filled the document.
        return int(record["attempts"]) if record is not None else 1

    def take_up(self, due: Mapping[str, Any], case: Case, now: int) -> int | None:
        """Count an attempt for a record that was due; None if it has changed since.

        Then somebody else makes this attempt.
        """
        unchanged = {name: due[name] for name in ("state", "attempts", "next_at")}
        that = self._that(case.document_id) | unchanged
        record = self._begun(that, case, now, upsert=False)
        return int(record["attempts"]) if record is not None else None

    def _begun(
        self, that: Mapping[str, Any], case: Case, now: int, *, upsert: bool
    ) -> Mapping[str, Any] | None:
        same = _is_of(case)
        counted = {"$cond": [same, {"$add": ["$attempts", 1]}, 1]}
        record: Mapping[str, Any] | None = self.records.find_one_and_update(
            that,
            [
                {
                    "$set": {
                        "_id": self._id(case),
                        "attempts": counted,
                        "error": {"$cond": [same, {"$ifNull": ["$error", None]}, None]},
                    }
                },
                {
                    "$set": {
                        "input": case.input,
                        "version": case.version,
                        "state": "running",
                        "next_at": now + int(1000 * _attempt_seconds()),
                    }
                },
            ],
            upsert=upsert,
            return_document=True,
        )
        return record

    def fail(
        self, failed: Iterable[tuple[Case, Mapping[str, Any]]], attempts: int, now: int
    ) -> None:
        """Note the errors of attempts: tried again later, or dead after `MAX_ATTEMPTS`."""
        next_at = now + int(1000 * BACKOFF_SECONDS**attempts)
        updates = [
            UpdateOne(
                self._that(case.document_id),
                [
                    # Another worker may have counted, and made, a later attempt meanwhile.
                    {"$set": {"attempts": _at_least(attempts, case)}},
                    {
                        "$set": {
                            "_id": {
                                "$ifNull": ["$_id", {"$literal": self._that(case.document_id)}]
                            },
                            "input": case.input,
                            "version": case.version,
                            "state": _dead_or_retried(),
                            "next_at": next_at,
                            "error": {"$literal": _shortened(error)},
                            **_UNKNOWN,
                        }
                    },
                ],
                upsert=True,
            )
            for case, error in failed
        ]
        if updates:
            self.records.bulk_write(updates, ordered=False)

    def suspect(self, cases: Iterable[Case]) -> None:
        """Have documents tried by themselves that killed another version with the same input."""
        fields = {"state": "retry", "attempts": 0, "next_at": 0}
        self._note((case, fields) for case in cases)

    def withhold(self, cases: Iterable[tuple[Case, Mapping[str, Any]]], now: int) -> None:
        """Note documents whose value was not sure enough to be written, with what came out."""
        fields = {"state": "withheld", "attempts": 0, "next_at": now, "error": None}
        self._note((case, {**fields, **_kept(outcome)}) for case, outcome in cases)

    def leave_blank(self, cases: Iterable[tuple[Case, Mapping[str, Any]]], now: int) -> None:
        """Note documents for which the model answered None, with what it said beside that."""
        fields = {"state": "no_value", "attempts": 0, "next_at": now}
        self._note(
            (case, {**fields, **_kept(outcome), "error": _shortened(outcome["error"])})
            for case, outcome in cases
        )

    def turn_away(self, cases: Iterable[tuple[Case, Mapping[str, Any]]], now: int) -> None:
        """Note documents whose input is out of domain, with how far it is from the references."""
        fields = {"state": "out_of_domain", "attempts": 0, "next_at": now, "error": None}
        self._note((case, {**fields, **_kept(outside)}) for case, outside in cases)

    def clear_values(self, cases: Iterable[Case], now: int) -> None:
        """Note documents whose value is removed because its input changed."""
        fields = {"state": "cleared", "attempts": 0, "next_at": now, "error": None}
        self._note((case, fields) for case in cases)

    def put_off(self, cases: Iterable[Case], now: int) -> None:
        """Note documents to be looked at again soon, whatever they wait for."""
        fields = {"state": PUT_OFF, "attempts": 0, "error": None}
        next_at = now + int(1000 * PUT_OFF_SECONDS)
        self._note((case, {**fields, "next_at": next_at}) for case in cases)

    def take_back(self, cases: Iterable[Case], now: int) -> None:
        """Note documents whose value a person has this version take back."""
        fields = {"state": "reverted", "attempts": 0, "next_at": now, "error": None}
        self._note((case, fields) for case in cases)

    def forget(self, document_ids: Sequence[Any]) -> None:
        """Drop the records of documents that were filled, changed or deleted."""
        # One by one: to the embedded store one deletion with all of them costs twice as much.
        deletions = [DeleteOne(self._that(document_id)) for document_id in document_ids]
        if deletions:
            self.records.bulk_write(deletions, ordered=False)

    def forget_known(self, document_ids: Sequence[Any]) -> None:
        """Drop the records that there may be of these documents; cheap where there are none."""
        if self._any():
            self.forget(document_ids)

    def release_running(self) -> None:
        """Have attempts taken up at once that were under way when the leader before ended.

        Those of workers that only helped are taken up when they should be over.
        """
        running = {"imputation": self.imputation_id, "state": "running"}
        self.records.update_many(running, {"$set": {"next_at": 0}})

    def forget_deleted(self, collection: Collection[Any]) -> None:
        """Drop the records of documents that are no longer in the collection."""
        found = self.records.find({"imputation": self.imputation_id}, {"document": 1})
        while batch := [each["document"] for each in itertools.islice(found, SWEEP)]:
            there = find_by_ids(collection, batch, {"_id": 1})
            keys = {key_of(each["_id"]) for each in there}
            self.forget([each for each in batch if key_of(each) not in keys])

    def _note(self, notes: Iterable[tuple[Case, Mapping[str, Any]]]) -> None:
        updates = [
            UpdateOne(
                self._that(case.document_id),
                {
                    "$setOnInsert": {"_id": self._that(case.document_id)},
                    "$set": {
                        "input": case.input,
                        "version": case.version,
                        **_UNKNOWN,
                        **fields,
                    },
                },
                upsert=True,
            )
            for case, fields in notes
        ]
        if updates:
            self.records.bulk_write(updates, ordered=False)

    # By two fields with an index: the embedded store finds no document by an `_id` that is a
    # document except by looking at every one.

    def _that(self, document_id: Any) -> dict[str, Any]:
        return {"imputation": self.imputation_id, "document": document_id}

    def _id(self, case: Case) -> dict[str, Any]:
        return {"$ifNull": ["$_id", {"$literal": self._that(case.document_id)}]}

    def _those(self, document_ids: Sequence[Any]) -> dict[str, Any]:
        return {"imputation": self.imputation_id, "document": {"$in": list(document_ids)}}


def _attempt_seconds() -> float:
    """The longest that an attempt takes whose worker lives: it may wait for another's before it."""
    return 2 * settings.get_number("PREDICT_TIMEOUT") + ATTEMPT_MARGIN_SECONDS


def _kept(outcome: Mapping[str, Any]) -> dict[str, Any]:
    return {name: outcome.get(name) for name in OF_OUTCOME}


def _is_of(case: Case) -> dict[str, Any]:
    """Whether a record is of this input and version."""
    return {"$and": [{"$eq": ["$input", case.input]}, {"$eq": ["$version", case.version]}]}


def _at_least(attempts: int, case: Case) -> dict[str, Any]:
    # One more may have been counted that was not made, because it was one too many.
    most = {"$min": [MAX_ATTEMPTS, {"$max": ["$attempts", attempts]}]}
    return {"$cond": [_is_of(case), most, attempts]}


def _dead_or_retried() -> dict[str, Any]:
    return {"$cond": [{"$gte": ["$attempts", MAX_ATTEMPTS]}, "dead", "retry"]}


def stands(failure: Mapping[str, Any], case: Case) -> bool:
    """Whether an earlier failure still says what would come of another try."""
    if failure["state"] == "cleared":
        return True
    if failure["state"] == PUT_OFF:
        return False
    return bool(failure["input"] == case.input and failure["version"] == case.version)


def _shortened(error: Mapping[str, Any]) -> dict[str, str]:
    return {
        "type": str(error.get("type", "Error"))[:200],
        "message": str(error.get("message", ""))[:MESSAGE_LENGTH],
        "traceback": str(error.get("traceback") or "")[-TRACEBACK_LENGTH:],
    }


def prepare(database: Database[Any]) -> None:
    """Make the indexes by which records are found: by document, and those that wait."""
    database[NAME].create_index([("imputation", 1), ("document", 1)], unique=True)
    database[NAME].create_index([("imputation", 1), ("state", 1), ("next_at", 1)])
    database[NAME].create_index([("document", 1)])


def known_to_all(
    database: Database[Any], imputation_ids: Iterable[str], document_ids: Sequence[Any]
) -> dict[str, Known]:
    """The records that several imputations have of these documents, in one look."""
    known: dict[str, Known] = {each: {} for each in imputation_ids}
    # Not by the imputations too: the embedded store looks at every record for two `$in`.
    for record in database[NAME].find({"document": {"$in": list(document_ids)}}):
        if record["imputation"] in known:
            known[record["imputation"]][key_of(record["document"])] = record
    return known


# For users -----------------------------------------------------------------------------------


def listing(database: Database[Any], imputation_id: str, limit: int = 100) -> list[dict[str, Any]]:
    """Documents that are not filled, with the reason; those deleted since are left out."""
    records = list(
        database[NAME]
        .find({"imputation": imputation_id, "state": {"$ne": PUT_OFF}})
        .sort([("state", 1), ("document", 1)])
        .limit(limit)
    )
    collection = database[imputation_id.rpartition("/")[0]]
    found = find_by_ids(collection, [each["document"] for each in records], {"_id": 1})
    there = {key_of(each["_id"]) for each in found}
    return [_shown(each) for each in records if key_of(each["document"]) in there]


def _shown(record: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("document", "state", "attempts", "version", "next_at", "confidence", "error")
    further = ("distance", "threshold") if record["state"] == "out_of_domain" else ()
    return {name: record.get(name) for name in (*fields, *further)}


def retry(database: Database[Any], imputation_id: str) -> int:
    """Have every document in the list tried anew; answers how many."""
    anew = {"state": "retry", "attempts": 0, "next_at": 0}
    tried = {"imputation": imputation_id, "state": {"$ne": PUT_OFF}}
    return database[NAME].update_many(tried, {"$set": anew}).modified_count
