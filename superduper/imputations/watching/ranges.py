"""Ranges of `_id`: the parts of a scan that workers share, each a lease with a place of its own.

Who leads a collection cuts a scan into ranges (`cutting.py`); whoever has time takes the next that
is free. How a scan is cut is its `plan`, kept with the imputation and replaced as a whole: ranges
of an earlier plan are nobody's. A scan is over when as many ranges are done as its plan has. That
a range is not there proves nothing.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pymongo.collection import Collection

from superduper import settings
from superduper.errors import LostLease
from superduper.imputations.decide import RAW
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.jobs.lease import Lease
from superduper.store.mongo import server_now_ms

NAME = "superduper.ranges"
# Longer than the longest batch, in which documents may outlast their time one after another.
WATCHDOG_MARGIN_SECONDS = 300.0

Bounds = Mapping[str, Any]
"""`first` (in the range) and `end` (behind it); without one of them it is open on that side."""


@dataclass(frozen=True)
class Progress:
    """How far a scan is; `left` is estimated, `rate` is that of who works on it now, per second."""

    seen: int
    filled: int
    left: int
    rate: float
    workers: int

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until the end at this rate; None while nobody works on it."""
        return round(self.left / self.rate, 1) if self.rate > 0 else None


class Claim:
    """A range that is ours for a while."""

    def __init__(self, documents: Collection[Any], lease: Lease, found: Mapping[str, Any]) -> None:
        self.lease = lease
        self.bounds = left_of(found)
        self._documents = documents
        self._seen = int(found["seen"])
        self._filled = int(found["filled"])

    def save(self, seen: int, filled: int, **fields: Any) -> None:
        """Add to what was seen and filled here, and keep the place (`last`) or what else there is.

        Raises LostLease if the range is another worker's by now, or was cut anew.
        """
        self._seen += seen
        self._filled += filled
        fields |= {"seen": self._seen, "filled": self._filled}
        if self._documents.update_one(self.lease.filter, {"$set": fields}).matched_count != 1:
            raise LostLease(f"the range {self.lease.id} was taken by another worker")


class Ranges:
    """The ranges of one scan, as it was cut when the record was read."""

    def __init__(self, imputations: Imputations, record: ImputationRecord) -> None:
        self.record = record
        self._database = imputations.database
        self._documents: Collection[Any] = imputations.database[NAME]
        # The bounds are read as the bytes that they are.
        self._raw = self._documents.with_options(RAW)
        self._owner = uuid.uuid4().hex

    def all(self) -> list[Mapping[str, Any]]:
        """Every range, in the order of the collection."""
        plan = self.record.scan.get("plan")
        return list(self._raw.find({"plan": plan}).sort("number", 1)) if plan else []

    def free(self) -> list[Mapping[str, Any]]:
        """Those that are not done and nobody's just now."""
        left = [each for each in self.all() if not each["done"]]
        now = server_now_ms(self._database) if left else 0
        return [each for each in left if each["expires_at"] < now]

    def take(self) -> Claim | None:
        """The next range that is not done and nobody's; None if there is none just now."""
        for found in self.free():
            lease = Lease(
                self._documents,
                found["_id"],
                self._owner,
                settings.get_number("LEASE_SECONDS"),
                watchdog_seconds=settings.get_number("PREDICT_TIMEOUT") + WATCHDOG_MARGIN_SECONDS,
                upsert=False,
            )
            if not lease.acquire():
                continue
            # Its place may have moved since it was looked at.
            mine = self._raw.find_one({**lease.filter, "done": False})
            if mine is not None:
                return Claim(self._documents, lease, mine)
            lease.release()
        return None

    def progress(self) -> Progress:
        """How far the scan is, over all its ranges."""
        scan = self.record.scan
        found = self.all() if scan.get("state") == "running" else []
        now = server_now_ms(self._database) if found else 0
        held = [each for each in found if each["expires_at"] >= now and not each["done"]]
        seen = int(scan.get("seen", 0)) + sum(each["seen"] for each in found)
        return Progress(
            seen=seen,
            filled=int(scan.get("filled", 0)) + sum(each["filled"] for each in found),
            left=max(0, int(scan.get("documents", 0)) - seen) if found else 0,
            rate=round(sum(each["rate"] for each in held), 1),
            workers=len({each["owner"] for each in held}),
        )


def left_of(found: Mapping[str, Any]) -> Bounds:
    """What of a range is still to be walked: from its place, which is walked once more."""
    bounds = {name: found[name] for name in ("first", "end") if name in found}
    return {**bounds, "first": found["last"]} if "last" in found else bounds
