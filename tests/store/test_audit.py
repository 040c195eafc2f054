"""The audit log: a chain of which no link can be changed unnoticed."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from pymongo.database import Database

from superduper.errors import InvalidInput, NotReady
from superduper.store import audit as audit_module
from superduper.store.audit import FIRST, NAME, Audit, broken_link, hash_of

Documents = Any


@pytest.fixture
def audit(database: Database[Any]) -> Audit:
    return Audit(database)


@pytest.fixture
def five(audit: Audit) -> Audit:
    """A log of five entries."""
    for number in range(5):
        audit.append(who="eve", action="Try", subject=f"thing {number}")
    return audit


def test_every_entry_follows_the_one_before(five: Audit) -> None:
    entries = list(five.entries())
    assert [entry["_id"] for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry["previous"] for entry in entries] == [FIRST, *(e["hash"] for e in entries[:-1])]
    assert broken_link(entries) is None
    assert broken_link(entries, {5: entries[4]["hash"], 2: entries[1]["hash"]}) is None
    assert five.last(2) == entries[3:]


def test_an_empty_log_is_whole(audit: Audit) -> None:
    assert broken_link(audit.entries()) is None


def rewrite(documents: Documents) -> None:
    """What somebody with the database does who knows how it is made: the rest of the chain anew."""
    entries = list(documents.find().sort("_id", 1))
    entries[2]["who"] = "bob"
    for before, entry in zip(entries[1:], entries[2:], strict=False):
        entry["previous"] = before["hash"]
        entry["hash"] = hash_of(entry)
        documents.replace_one({"_id": entry["_id"]}, entry)


TAMPERINGS: dict[str, tuple[Callable[[Documents], Any], str]] = {
    "a word changed": (
        lambda d: d.update_one({"_id": 3}, {"$set": {"who": "bob"}}),
        "entry 3 was changed",
    ),
    "a time changed": (lambda d: d.update_one({"_id": 2}, {"$inc": {"at": 1}}), "entry 2 was"),
    "a field added": (lambda d: d.update_one({"_id": 2}, {"$set": {"x": 1}}), "entry 2 was"),
    "a field of a strange type": (
        lambda d: d.update_one({"_id": 2}, {"$set": {"x": 1.5}}),
        "entry 2 was",
    ),
    "a field removed": (lambda d: d.update_one({"_id": 2}, {"$unset": {"of": 1}}), "entry 2 was"),
    "the hash changed": (
        lambda d: d.update_one({"_id": 3}, {"$set": {"hash": "0" * 64}}),
        "entry 3 was changed",
    ),
    "the hash removed": (lambda d: d.update_one({"_id": 3}, {"$unset": {"hash": 1}}), "entry 3"),
    "an entry removed": (lambda d: d.delete_one({"_id": 3}), "entry 3 is missing"),
    "the first removed": (lambda d: d.delete_one({"_id": 1}), "entry 1 is missing"),
    "an entry inserted": (
        lambda d: d.insert_one({"_id": 3.5, "who": "bob", "previous": "x", "hash": "y"}),
        "entry 4 is missing: '3.5' is in its place",
    ),
    "an entry put at the end": (
        lambda d: d.insert_one({"_id": "6", "who": "bob"}),
        "entry 6 is missing",
    ),
    "two swapped": (
        lambda d: [
            d.replace_one({"_id": 2}, {**d.find_one({"_id": 3}), "_id": 2}),
        ],
        "entry 2 does not follow",
    ),
}


@pytest.mark.parametrize("how", TAMPERINGS)
def test_a_broken_link_is_named(five: Audit, database: Database[Any], how: str) -> None:
    tamper, told = TAMPERINGS[how]
    tamper(database[NAME])
    problem = broken_link(five.entries())
    assert problem is not None and problem.startswith(told), problem


def test_a_log_written_anew_shows_against_a_noted_hash(
    five: Audit, database: Database[Any]
) -> None:
    noted = {5: five.last(1)[0]["hash"]}
    rewrite(database[NAME])
    assert broken_link(five.entries()) is None  # the chain alone cannot tell
    assert broken_link(five.entries(), noted) == (
        "entry 5 is not the one that was noted: the log was written anew"
    )


def test_an_end_cut_off_shows_against_a_noted_hash(five: Audit, database: Database[Any]) -> None:
    noted = {5: five.last(1)[0]["hash"]}
    database[NAME].delete_many({"_id": {"$gt": 3}})
    assert broken_link(five.entries()) is None
    assert broken_link(five.entries(), noted) == (
        "entry 5 was noted, but the log ends with 3: its end is gone"
    )


def test_many_who_write_at_once_make_one_chain(audit: Audit, database: Database[Any]) -> None:
    def write(name: str) -> None:
        mine = Audit(database)
        for number in range(10):
            mine.append(who=name, action="Try", subject=str(number))

    threads = [threading.Thread(target=write, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = list(audit.entries())
    assert len(entries) == 40
    assert broken_link(entries) is None
    for name in ("t0", "t1", "t2", "t3"):
        assert [e["subject"] for e in entries if e["who"] == name] == [str(n) for n in range(10)]


def test_an_act_is_noted_before_and_after(audit: Audit) -> None:
    def act() -> dict[str, Any]:
        assert [entry["outcome"] for entry in audit.entries()] == ["asked"]
        return {"name": "m", "version": 3, "content": "abc"}

    audit.around(act, who="eve", action="Register", subject="name=m")
    done = audit.last(1)[0]
    assert (done["outcome"], done["of"], done["content"]) == ("done", 1, "abc")
    assert done["subject"] == "name=m name=m version=3"


def test_a_failure_is_noted_without_its_text(audit: Audit) -> None:
    def act() -> None:
        raise InvalidInput("secret")

    with pytest.raises(InvalidInput):
        audit.around(act, who="eve", action="Register", subject="name=m")
    failed = audit.last(1)[0]
    assert failed["outcome"] == "failed: invalid_input"
    assert "secret" not in str(failed)


def test_what_cannot_be_noted_is_not_done(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "TRIES", 0)
    done: list[int] = []
    with pytest.raises(NotReady, match="audit"):
        audit.around(lambda: done.append(1), who="eve", action="Register", subject="name=m")
    assert not done
