"""Ranges of a scan: they cover a collection once, are one worker's each, and outlive workers."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from bson import ObjectId
from filling import Filling, describe, record_of, scan_of
from pymongo.database import Database
from watching import Watching

from superduper.errors import LostLease
from superduper.imputations.failures import key_of
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.isolate import BatchSize
from superduper.imputations.watching import cutting
from superduper.imputations.watching.cutting import cut
from superduper.imputations.watching.ranges import NAME, Claim, Ranges
from superduper.imputations.watching.scan import walk, wanted
from superduper.jobs.worker import alive_workers
from superduper.store.mongo import server_now_ms
from tests.waiting import until

IDS: list[Any] = [
    None,
    *range(40),
    *(each + 0.5 for each in range(20)),
    *(f"text {each}" for each in range(40)),
    *({"a": each, "b": str(each)} for each in range(40)),
    *(ObjectId() for _ in range(40)),
    b"bytes",
    True,
]


@pytest.fixture
def filling(database: Database[Any], monkeypatch: pytest.MonkeyPatch) -> Filling:
    monkeypatch.setattr(cutting, "LEAST_DOCUMENTS", 10)
    filling = Filling(database)
    filling.docs.insert_many({"_id": each, "x": 1} for each in IDS)
    return filling


def cut_for(imputations: Imputations, workers: int, **scan: Any) -> ImputationRecord:
    """What is to be scanned, cut for so many workers."""
    record = imputations.get("docs", "imputation")
    record = replace(record, scan={**record.scan, **scan})
    planned = cut(imputations, record, workers, wanted(record))
    assert planned is not None
    return planned


def walked(filling: Filling, claim: Claim) -> list[bytes]:
    batches = walk(filling.filler, record_of(), claim.bounds, BatchSize(7))
    return [key_of(each["_id"]) for batch in batches for each in batch]


def in_order(filling: Filling) -> list[bytes]:
    return [key_of(each["_id"]) for each in filling.docs.find().hint([("_id", 1)])]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_ranges_cover_ids_of_all_types_once(
    filling: Filling, imputations: Imputations, workers: int
) -> None:
    ranges = Ranges(imputations, cut_for(imputations, workers))
    claims: list[Claim] = []
    while claim := ranges.take():
        claims.append(claim)
    assert len(claims) == {1: 1, 2: 8, 4: 16}[workers]
    walks = [walked(filling, claim) for claim in claims]
    assert [key for keys in walks for key in keys] == in_order(filling)
    assert workers == 1 or max(map(len, walks)) < len(IDS) // 2
    for claim in claims:
        claim.lease.release()


def test_a_range_is_one_workers_until_it_lets_go(
    filling: Filling, imputations: Imputations
) -> None:
    record = cut_for(imputations, 1)
    first, second = Ranges(imputations, record), Ranges(imputations, record)
    claim = first.take()
    assert claim is not None
    assert first.take() is None
    assert second.take() is None
    claim.save(30, 20, last=29, rate=5.0)
    claim.lease.release()
    again = second.take()
    assert again is not None
    assert again.bounds == {"first": 29}
    with pytest.raises(LostLease):  # as by a worker that was frozen and thawed
        claim.save(60, 60, last=59)
    progress = second.progress()
    assert (progress.seen, progress.filled, progress.left) == (30, 20, len(IDS) - 30)
    assert (progress.workers, progress.rate) == (1, 5.0)
    assert progress.eta_seconds == pytest.approx((len(IDS) - 30) / 5, abs=0.1)
    again.lease.release()
    assert second.progress().eta_seconds is None, "nobody works on it"


def test_what_is_left_is_cut_for_those_who_come(filling: Filling, imputations: Imputations) -> None:
    alone = cut_for(imputations, 1)
    claim = Ranges(imputations, alone).take()
    assert claim is not None
    place = in_order(filling).index(key_of("text 3"))
    claim.save(place + 1, place + 1, last="text 3")
    shared = cut_for(imputations, 3)
    with pytest.raises(LostLease):
        claim.save(7, 7, last="text 9")
    claim.lease.release()
    ranges = Ranges(imputations, shared)
    claims = [found for _ in range(12) if (found := ranges.take())]
    assert len(claims) == 12
    keys = [key for each in claims for key in walked(filling, each)]
    assert keys == in_order(filling)[place:], "from the place on, which is walked once more"
    assert ranges.progress().filled == place + 1
    for each in claims:
        each.lease.release()


def test_of_two_plans_only_one_is_made(filling: Filling, imputations: Imputations) -> None:
    record = imputations.get("docs", "imputation")
    made = cut(imputations, record, 2, wanted(record))
    assert made is not None
    assert cut(imputations, record, 2, wanted(record)) is None
    imputations.request_scan("docs")
    assert cut(imputations, made, 2, wanted(record)) is None
    assert imputations.database[NAME].distinct("plan") == [made.scan["plan"]]


def test_ranges_that_are_not_there_prove_nothing(
    filling: Filling, imputations: Imputations
) -> None:
    record = cut_for(imputations, 2)
    gone = imputations.database[NAME].delete_many({"number": {"$gt": 2}})
    assert gone.deleted_count == 5
    assert scan_of(filling, imputations, record).lead()
    assert filling.docs.count_documents({"y": describe(1)}) == len(IDS)


def test_who_leads_waits_for_who_helps(filling: Filling, imputations: Imputations) -> None:
    record = cut_for(imputations, 2)
    others = Ranges(imputations, record).take()
    assert others is not None
    leading = scan_of(filling, imputations, record)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(leading.lead()))
    thread.start()
    until(lambda: sum(each["done"] for each in Ranges(imputations, record).all()) == 7)
    assert done == []
    others.lease.release()
    assert scan_of(filling, imputations, record).help()
    thread.join(30)
    assert done == [True]
    assert filling.docs.count_documents({"y": describe(1)}) == len(IDS)
    scan = imputations.get("docs", "imputation").scan
    assert (scan["state"], scan["seen"], scan["filled"]) == ("done", len(IDS), len(IDS))


def test_a_worker_that_comes_later_has_a_part(
    filling: Filling, imputations: Imputations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("superduper.imputations.watching.scan.NEWCOMERS_SECONDS", 0.0)
    scan = scan_of(filling, imputations, imputations.get("docs", "imputation"))
    prepare, plans = scan.filler.prepare, list[tuple[str, int]]()

    def two_more_come(documents: Any) -> Any:
        now = imputations.get("docs", "imputation").scan
        plans.append((now["plan"], now["ranges"]))
        if len(plans) == 2:
            seen_at = server_now_ms(imputations.database) + 60_000
            imputations.database["superduper.workers"].insert_many(
                [{"seen_at": seen_at}, {"seen_at": seen_at}, {"seen_at": seen_at}]
            )
        return prepare(documents)

    scan.filler.prepare = two_more_come  # type: ignore[method-assign]
    assert scan.lead()
    assert filling.docs.count_documents({"y": describe(1)}) == len(IDS)
    assert [count for _, count in dict(plans).items()] == [1, 12]
    seen = imputations.get("docs", "imputation").scan["seen"]
    assert len(IDS) <= seen <= len(IDS) + 1, "only the place reached is looked at twice"


def test_an_earlier_leader_begins_no_scan(watching: Watching) -> None:
    """It has no stream from which to be told what changes behind the scan."""
    watching.live(describe)
    with watching.running():
        # It has a place in the stream now: it goes on there and asks for no scan of its own.
        until(lambda: watching.status() == "watching" and watching.watcher().get("token"))
    watching.imputations.request_scan("docs", fence=1_000)
    with watching.running():
        watching.docs.insert_one({"_id": "streamed", "x": 2})
        until(lambda: watching.document("streamed").get("y") == describe(2))
        seen_at = watching.watcher()["seen_at"]
        until(lambda: watching.watcher()["seen_at"] > seen_at)
    assert watching.status() == "filling"


# Real workers --------------------------------------------------------------------------------


class Slow:
    """A model that leaves others the time to take part."""

    def predict(self, values: Any) -> list[str]:
        time.sleep(0.006 * len(values))
        return [describe(value) for value in values.tolist()]


@contextlib.contextmanager
def workers(store_uri: str, database: str, count: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Worker processes; the first leads."""
    command = [sys.executable, "-m", "superduper.imputations.work", store_uri, database]
    env = {**os.environ, "SUPERDUPER_LEASE_SECONDS": "2"}
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(count):
            process = stack.enter_context(
                subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.kill)
            started.append(process)
        yield started


def test_three_workers_share_a_scan_and_one_is_killed(watching: Watching, store_uri: str) -> None:
    docs, database = watching.docs, watching.database
    docs.insert_many({"_id": each if each % 2 else str(each), "x": each} for each in range(2000))
    docs.update_many({"_id": {"$in": list(range(1, 400, 2))}}, {"$set": {"y": "mine"}})
    seen: set[str] = set()

    def at_work() -> int:
        held = database[NAME].find({"done": False, "owner": {"$ne": None}}, {"owner": 1})
        seen.update(each["owner"] for each in held)
        return len(seen)

    with workers(store_uri, database.name, 3) as started:
        until(lambda: len(alive_workers(database)) == 3, 60, "three workers")
        watching.live(Slow())
        until(lambda: at_work() >= 2, 60, "others at work")
        record = watching.imputations.get("docs", "imputation")
        assert Ranges(watching.imputations, record).progress().left > 0
        started[0].send_signal(signal.SIGKILL)
        until(lambda: watching.status() == "watching", 120, "the scan's end")
        told = watching.imputations.get("docs", "imputation").scan
        failed = database["superduper.failures"].find_one()
        assert docs.count_documents({"y": {"$exists": False}}) == 0, (told, failed)
        assert docs.count_documents({"y": "mine"}) == 200
        for each in docs.find({"y": {"$ne": "mine"}}):
            assert each["y"] == describe(each["x"])
