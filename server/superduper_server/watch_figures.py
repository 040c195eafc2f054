"""Figures of what is filled, for Prometheus: how late, how much is left, what came of it.

The workers keep account in the database; the figures are read from there when somebody asks, away
from the event loop.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pymongo.database import Database

from superduper.imputations.failures import NAME as FAILURES
from superduper.imputations.failures import WAITING
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.watching.ranges import Ranges
from superduper.imputations.watching.watch import NAME as WATCHERS
from superduper.jobs.worker import alive_workers
from superduper.store.mongo import server_now_ms

RESULTS = (
    *("filled", "superseded", "withheld", "no_value", "out_of_domain"),
    *("failed", "cleared", "moving"),
)
DEATHS = {"ChildDied": "died", "TimedOut": "timed_out", "TooLarge": "too_large"}
COLLECTION = ("collection",)
IMPUTATION = ("collection", "imputation")


class WatchFigures:
    """What was last read; nothing while the database does not answer."""

    def __init__(self) -> None:
        self._metrics: list[Metric] = []

    def collect(self) -> Iterator[Metric]:
        """The figures, as the library asks for them."""
        yield from self._metrics

    def forget(self) -> None:
        """Tell nothing: old figures would look like new ones."""
        self._metrics = []

    def read(self, database: Database[Any]) -> None:
        """Read everything anew; a few small reads, and one of each imputation's failures."""
        records = Imputations(database).find()
        watchers = [
            (state["_id"].removeprefix("stream:"), state)
            for state in database[WATCHERS].find({}, {"token": 0})
        ]
        workers = GaugeMetricFamily("superduper_workers", "Workers that are alive.")
        workers.add_metric((), len(alive_workers(database)))
        self._metrics = [
            workers,
            *_of_streams(watchers, server_now_ms(database)),
            *_of_fills(watchers),
            *_of_imputations(database, records),
        ]


def _of_streams(
    watchers: list[tuple[str, Mapping[str, Any]]], now: int
) -> tuple[Metric, Metric, Metric]:
    held = GaugeMetricFamily(
        "superduper_watcher_held", "1 while a worker follows the collection.", labels=COLLECTION
    )
    lag = GaugeMetricFamily(
        "superduper_watcher_lag_seconds",
        "Age of the last change that was worked through, when that was noted.",
        labels=COLLECTION,
    )
    silent = GaugeMetricFamily(
        "superduper_watcher_silent_seconds",
        "Time since the place in the change stream was noted; it is every 10 s if nothing happens.",
        labels=COLLECTION,
    )
    for name, state in watchers:
        held.add_metric((name,), float((state.get("expires_at") or 0) > now))
        if "seen_at" in state:
            lag.add_metric((name,), (state.get("lag_ms") or 0) / 1000)
            silent.add_metric((name,), max(0, now - state["seen_at"]) / 1000)
    return held, lag, silent


def _of_fills(watchers: list[tuple[str, Mapping[str, Any]]]) -> tuple[Metric, ...]:
    fills = CounterMetricFamily(
        "superduper_fills", "Fields that were to be filled.", labels=("collection", "result")
    )
    corrected = CounterMetricFamily(
        "superduper_corrections", "Filled values that a person changed.", labels=COLLECTION
    )
    lost = CounterMetricFamily(
        "superduper_history_lost", "Times that a collection's history was lost.", labels=COLLECTION
    )
    deaths = CounterMetricFamily(
        "superduper_child_deaths",
        "Processes of models that ended, or were ended, while they worked.",
        labels=("collection", "cause"),
    )
    for name, state in watchers:
        counters = state.get("counters", {})
        for result in RESULTS:
            fills.add_metric((name, result), counters.get(result, 0))
        for error, cause in DEATHS.items():
            deaths.add_metric((name, cause), counters.get(error, 0))
        corrected.add_metric((name,), counters.get("corrected", 0))
        lost.add_metric((name,), counters.get("history_lost", 0))
    return fills, corrected, lost, deaths


def _of_imputations(database: Database[Any], records: list[ImputationRecord]) -> tuple[Metric, ...]:
    backlog = GaugeMetricFamily(
        "superduper_backlog_documents",
        "Documents that are to be looked at yet: by a scan (about), or to be tried again.",
        labels=IMPUTATION,
    )
    eta = GaugeMetricFamily(
        "superduper_scan_eta_seconds",
        "Seconds until the scan's end at its present pace; NaN while nobody works on it.",
        labels=IMPUTATION,
    )
    failures = GaugeMetricFamily(
        "superduper_failures",
        "Documents without a value, by why: retry, running, dead, withheld, no_value, "
        "out_of_domain, cleared, reverted.",
        labels=(*IMPUTATION, "state"),
    )
    for record in records:
        name = record.collection, record.name
        by_state = _failures(database, record)
        for state, count in by_state.items():
            failures.add_metric((*name, state), count)
        waiting = sum(by_state.get(state, 0) for state in WAITING)
        left, seconds = _scan(database, record)
        backlog.add_metric(name, left + waiting)
        if record.status == "filling":
            eta.add_metric(name, float("nan") if seconds is None else seconds)
    return backlog, eta, failures


def _failures(database: Database[Any], record: ImputationRecord) -> dict[str, int]:
    grouped = {"$group": {"_id": "$state", "count": {"$sum": 1}}}
    found = database[FAILURES].aggregate([{"$match": {"imputation": record.id}}, grouped])
    return {each["_id"]: each["count"] for each in found}


def _scan(database: Database[Any], record: ImputationRecord) -> tuple[int, float | None]:
    """How many documents are left, and for how long."""
    if record.status != "filling":
        return 0, None
    if "plan" not in record.scan:  # nobody has begun
        return database[record.collection].estimated_document_count(), None
    progress = Ranges(Imputations(database), record).progress()
    return progress.left, progress.eta_seconds
