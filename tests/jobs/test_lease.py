"""One holder at a time, by the database's clock; a late one changes nothing."""

import threading
import time
import uuid
from typing import Any

import pytest
from pymongo.database import Database

from superduper.errors import LostLease
from superduper.jobs.lease import Lease, Renewal
from tests.waiting import until

Store = Database[dict[str, Any]]


def lease(database: Store, seconds: float = 1.0, **options: Any) -> Lease:
    owner = options.pop("owner", uuid.uuid4().hex)
    return Lease(database["leases"], "stream:docs", owner, seconds, **options)


def test_only_one_holds_it(database: Store) -> None:
    first, second = lease(database), lease(database)
    assert first.acquire() and not second.acquire()
    assert first.held and not second.held
    first.check()
    with pytest.raises(LostLease, match="'stream:docs'"):
        second.check()
    first.release()
    assert not first.held
    assert second.acquire() and second.fence == first.fence + 1
    second.release()


def test_it_is_renewed_beyond_its_length(database: Store) -> None:
    first, second = lease(database), lease(database)
    assert first.acquire()
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert not second.acquire()
        assert first.held
        threading.Event().wait(0.1)
    first.release()


def test_its_own_fields_survive(database: Store) -> None:
    database["leases"].insert_one({"_id": "stream:docs", "token": {"_data": "82"}})
    first = lease(database)
    assert first.acquire()
    assert database["leases"].update_one(first.filter, {"$set": {"lag_ms": 3}}).matched_count == 1
    first.release()
    document = database["leases"].find_one({"_id": "stream:docs"})
    assert document is not None and document["token"] == {"_data": "82"} and document["lag_ms"] == 3


def test_a_holder_without_progress_loses_it(database: Store) -> None:
    hanging = lease(database, watchdog_seconds=0.5)
    waiting = lease(database)
    assert hanging.acquire()
    until(waiting.acquire, 10)
    assert not hanging.held
    stale = database["leases"].update_one(hanging.filter, {"$set": {"token": "old"}})
    assert stale.matched_count == 0
    hanging.release()
    assert waiting.held
    waiting.release()


def test_progress_keeps_it(database: Store) -> None:
    working, waiting = lease(database, watchdog_seconds=0.5), lease(database)
    assert working.acquire()
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        working.progressed()
        assert not waiting.acquire()
        threading.Event().wait(0.1)
    working.release()


def test_the_same_owner_takes_it_again(database: Store) -> None:
    first = lease(database, owner="me")
    again = lease(database, owner="me")
    assert first.acquire() and again.acquire()
    assert again.fence == first.fence + 1
    until(lambda: not first.held)
    assert again.held
    first.release()
    assert again.held and not lease(database).acquire()
    again.release()


def test_many_at_once_make_one_holder(database: Store) -> None:
    contenders = [lease(database, 5.0) for _ in range(8)]
    threads = [threading.Thread(target=contender.acquire) for contender in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    holders = [contender for contender in contenders if contender.held]
    assert len(holders) == 1
    holders[0].release()


def test_the_deadline_counts_from_before_the_request(database: Store) -> None:
    now = 100.0
    first = lease(database, 60.0, clock=lambda: now)
    assert first.acquire() and first.held
    now = 159.9
    assert first.held
    now = 160.0
    assert not first.held
    first.release()


def test_no_clock_but_the_servers_decides(database: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lease(database, 5.0)
    assert first.acquire()
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    second = lease(database, 5.0, clock=lambda: 1e9)
    assert not second.acquire()
    first.release()


def test_a_claim_that_could_not_be_renewed_is_asked_for_before_it_is_given_up() -> None:
    now, answers = 0.0, [True, False]
    renewal = Renewal(lambda: answers.pop(0), name="r", seconds=5, interval=60, clock=lambda: now)
    renewal.start(now)
    now = 7.0
    assert not renewal.held and renewal.confirm() and renewal.held, "nobody has taken it"
    now = 13.0
    assert not renewal.confirm() and renewal.lost.is_set(), "somebody has"
    assert not renewal.confirm() and answers == []
    renewal.stop()


def test_who_held_it_goes_on_if_nobody_came_in_between(database: Store) -> None:
    busy, other = lease(database, seconds=0.3, watchdog_seconds=0.1), lease(database)
    assert busy.acquire()
    until(lambda: not busy.held, what="its end")
    busy.check()
    assert busy.held and not other.acquire()
    until(other.acquire, what="its end")
    with pytest.raises(LostLease):
        busy.check()
    other.release()


def test_a_renewal_that_is_refused_is_lost() -> None:
    renewal = Renewal(lambda: False, name="test", seconds=0.2)
    renewal.start(time.monotonic())
    assert renewal.lost.wait(5)
    assert not renewal.held
    renewal.stop()
