"""Who did what to which object: a chain of entries, each with the hash of the one before.

Whoever changes, removes or inserts an entry breaks the chain at that place. Whoever can write to
the database could write the whole chain anew from there: what shows that is a hash that was noted
elsewhere, and every entry's is logged.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, TypeVar

from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from superduper.errors import NotReady, SuperduperError
from superduper.store.mongo import database_errors, server_now_ms
from superduper.store.signing import canonical

logger = logging.getLogger(__name__)

T = TypeVar("T")
NAME = "superduper.audit"
FIRST = "0" * 64
TRIES = 100
MOST_CHARACTERS = 300
NOTHING: Mapping[int, str] = {}


class Audit:
    """The chain of one database. Entries are only ever added."""

    def __init__(self, database: Database[Any]) -> None:
        self._database = database
        self._documents = database[NAME]

    def append(
        self,
        *,
        who: str,
        action: str,
        subject: str,
        outcome: str = "done",
        content: str | None = None,
        of: int | None = None,
    ) -> int:
        """Add an entry; answers its number. `of` is the number of the entry that it ends.

        Raises NotReady if it cannot be added: then what it tells of must not be done.
        """
        said = {"who": who, "action": action, "subject": subject, "outcome": outcome}
        entry = {key: text[:MOST_CHARACTERS] for key, text in said.items()}
        with database_errors():
            added = self._add({**entry, "content": content, "of": of})
        logger.info(
            "audit %d %s: %s %s %s: %s",
            *(added["_id"], added["hash"], who, action, subject, outcome),
            extra={"event": "audit"},
        )
        return int(added["_id"])

    def _add(self, entry: dict[str, Any]) -> dict[str, Any]:
        entry["at"] = server_now_ms(self._database)
        for _ in range(TRIES):
            last = self._documents.find_one(sort=[("_id", -1)]) or {"_id": 0, "hash": FIRST}
            made = {**entry, "_id": last["_id"] + 1, "previous": last["hash"]}
            made["hash"] = hash_of(made)
            try:
                self._documents.insert_one(made)
            except DuplicateKeyError:  # somebody else was quicker: theirs comes before ours
                time.sleep(secrets.randbelow(10) / 1000)
                continue
            return made
        raise NotReady("the audit log could not be written: too many write to it at once")

    def around(self, act: Callable[[], T], *, who: str, action: str, subject: str) -> T:
        """Do something between two entries: that it was asked for, and what became of it."""
        asked = self.append(who=who, action=action, subject=subject, outcome="asked")
        try:
            result = act()
        except Exception as error:
            code = error.code if isinstance(error, SuperduperError) else type(error).__name__
            failed = f"failed: {code}"
            self.append(who=who, action=action, subject=subject, outcome=failed, of=asked)
            raise
        told = result if isinstance(result, dict) else {}
        subject = f"{subject} {_said_of(told)}".strip()
        content = told.get("content")
        self.append(who=who, action=action, subject=subject, content=content, of=asked)
        return result

    def entries(self, after: int = 0, limit: int = 0) -> Iterator[dict[str, Any]]:
        """Entries in order, beginning with the one after a number."""
        with database_errors():
            yield from self._documents.find().sort("_id", 1).skip(after).limit(limit)

    def last(self, limit: int) -> list[dict[str, Any]]:
        """The newest entries, in order."""
        with database_errors():
            return list(self._documents.find().sort("_id", -1).limit(limit))[::-1]


def shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry as users see it."""
    return {("number" if key == "_id" else key): value for key, value in entry.items()}


def _said_of(result: Mapping[str, Any]) -> str:
    """What only the result tells of the subject: the name and the number that were given."""
    found = {key: result.get(key) for key in ("name", "version", "active")}
    return " ".join(f"{key}={value}" for key, value in found.items() if value is not None)


def hash_of(entry: Mapping[str, Any]) -> str:
    """The hash of an entry: over all of it but the hash itself.

    Raises TypeError if it holds what no entry of ours holds.
    """
    return sha256(canonical({k: v for k, v in entry.items() if k != "hash"})).hexdigest()


def broken_link(
    entries: Iterable[Mapping[str, Any]], known: Mapping[int, str] = NOTHING
) -> str | None:
    """What is wrong with a whole chain, given in order; None if nothing is.

    `known` are hashes by number that were noted elsewhere: they show that an end was cut off, or
    that everything from some place on was written anew.
    """
    number, previous = 0, FIRST
    for entry in entries:
        number += 1
        problem = _problem_of(entry, number, previous, known.get(number))
        if problem is not None:
            return problem
        previous = str(entry["hash"])
    if known and max(known) > number:
        return f"entry {max(known)} was noted, but the log ends with {number}: its end is gone"
    return None


def _problem_of(
    entry: Mapping[str, Any], number: int, previous: str, known: str | None
) -> str | None:
    if entry.get("_id") != number or isinstance(entry["_id"], float):
        return f"entry {number} is missing: {str(entry.get('_id'))[:20]!r} is in its place"
    if entry.get("previous") != previous:
        return f"entry {number} does not follow the one before it: one of the two was replaced"
    try:
        is_whole = entry.get("hash") == hash_of(entry)
    except TypeError:
        is_whole = False
    if not is_whole:
        return f"entry {number} was changed after it was written"
    if known not in (None, entry["hash"]):
        return f"entry {number} is not the one that was noted: the log was written anew"
    return None
