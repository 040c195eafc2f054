"""How many documents are in each state, without reading the collection on each call.

A tally is one pass over the collection, in which each document is counted once. It is kept, and
made anew only when it is older than twenty times what it took: asking costs at most a twentieth of
one reader's time. In between the answer is moved by what can be known without reading documents:
the size of the collection, the progress of a scan, and the lists of documents that failed, were
withheld, are out of domain or were taken back. What those do not explain is `pending`: nobody has
looked at it yet.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pymongo.database import Database

from superduper.imputations.failures import NAME as FAILURES
from superduper.imputations.failures import TAKEN_BACK, TURNED_AWAY
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.states import STATES, States
from superduper.imputations.watching.ranges import Ranges
from superduper.store.mongo import server_now_ms

NAME = "superduper.tallies"
#: A pass that is quicker than this, or over no more documents, is made each time.
QUICK_MS = 250
FEW = 2_000
AGE = 20

Counts = dict[str, int]


def count_states(database: Database[Any], record: ImputationRecord) -> Counts:
    """The number of documents in each state; they add up to the collection."""
    now = server_now_ms(database)
    kept = database[NAME].find_one({"_id": record.id})
    if kept is not None and kept["of"] == _of(record) and now - kept["at"] < _lasts(kept):
        moved = _moved(kept, _signs(database, record))
        if moved is not None:
            return moved
    return _tally(database, record, now)


def _lasts(kept: Mapping[str, Any]) -> int:
    """For how many milliseconds a tally is good enough."""
    small = sum(kept["counts"].values()) <= FEW
    return 0 if small or kept["took"] < QUICK_MS else AGE * kept["took"]


def _of(record: ImputationRecord) -> list[Any]:
    """What a tally is of: another version, or another scan, needs another one.

    So do other states, as there were before or will be.
    """
    return [record.created_at, record.active, record.scan.get("asked_at"), list(STATES)]


def _tally(database: Database[Any], record: ImputationRecord, now: int) -> Counts:
    began = time.monotonic()
    signs = _signs(database, record)
    found = Counter(standing.state for standing in States(database, record).walk({}))
    counts = {state: found[state] for state in STATES}
    took = int(1000 * (time.monotonic() - began))
    kept = {"of": _of(record), "at": now, "took": took, "signs": signs, "counts": counts}
    kept["beside"] = _beside(sum(counts.values()), signs["total"], _size(database, record))
    database[NAME].replace_one({"_id": record.id}, kept, upsert=True)
    return counts


def _signs(database: Database[Any], record: ImputationRecord) -> Counts:
    """What can be known without reading documents."""
    # A scan counts fields.
    filled = Ranges(Imputations(database), record).progress().filled
    return {
        "total": _size(database, record),
        "filled": filled if len(record.write_paths) == 1 else 0,
        **{state: _listed(database, record, [state]) for state in TURNED_AWAY},
        "withdrawn": _listed(database, record, list(TAKEN_BACK)),
        "failed": _listed(database, record, ["dead"]),
    }


def _size(database: Database[Any], record: ImputationRecord) -> int:
    """The size of the collection as the server keeps it, which costs nothing."""
    return database[record.collection].estimated_document_count()


def _beside(counted: int, before: int, after: int) -> int:
    """By how much the server is mistaken in the size, if nothing came or went during a pass.

    If something did, the pass has seen some of it and missed some: then the server is believed.
    """
    return counted - before if before == after else 0


def _listed(database: Database[Any], record: ImputationRecord, states: list[str]) -> int:
    wanted = {"imputation": record.id, "state": {"$in": states}}
    return database[FAILURES].count_documents(wanted)


def _moved(kept: Mapping[str, Any], signs: Counts) -> Counts | None:
    """The tally with what has happened since; None if that cannot be told."""
    counts: Counts = dict(kept["counts"])
    for state in ("filled", *TURNED_AWAY, "withdrawn", "failed"):
        counts[state] += signs[state] - kept["signs"][state]
    others = sum(count for state, count in counts.items() if state != "pending")
    counts["pending"] = signs["total"] + kept.get("beside", 0) - others
    # Less documents than before: which ones were deleted is not known.
    shrunk = signs["total"] < kept["signs"]["total"]
    return None if shrunk or min(counts.values()) < 0 else counts
