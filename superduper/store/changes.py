"""Follow one collection's changes: ids, and what updates set, not whole documents.

The stream is a hint, the collection is the truth: a reader takes ids from here and reads the
documents afresh. A token is saved after the work for a batch is done; when the history between a
token and now is gone, HistoryLost says so, and the reader walks the collection instead.
"""

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Self

from bson.datetime_ms import DatetimeMS
from pymongo.collection import Collection
from pymongo.errors import ConnectionFailure, OperationFailure, ProtocolError, PyMongoError

# History gone, fatal stream, invalid token, event over 16 MB. The embedded store sets no label.
TOO_LARGE = 10334
HISTORY_LOST = (286, 280, 260, TOO_LARGE)
HISTORY_LOST_LABEL = "NonResumableChangeStreamError"
CURSOR_GONE = (43, 237)  # not found, killed: the server was restarted or has cleaned up
RESUMABLE_LABEL = "ResumableChangeStreamError"
# A stream that has not been at the history's end for so long may have been overtaken by its cut.
BEHIND_SECONDS = 5.0
KINDS = ("insert", "replace", "update", "delete")

SET = "$updateDescription.updatedFields"
NAMES = {"$map": {"input": {"$objectToArray": SET}, "in": "$$this.k"}}


def _told(description: Any) -> tuple[dict[str, Any], ...]:
    """One new document for each event: on the embedded store half the cost of a `$project`."""
    names = ("_id", "operationType", "documentKey", "wallTime", "clusterTime")
    event: dict[str, Any] = {name: f"${name}" for name in names}
    return ({"$replaceWith": {**event, "updateDescription": description}},)


# Most updates are small fills of our own that come back. To have the server measure each of them
# costs a third of the stream, so values are asked for until they are too much for one reply.
WITH_VALUES = _told("$updateDescription")
#: An update's values are told where it is smaller than this.
SMALL_BYTES = 4096
WITH_SMALL_VALUES = _told(
    {
        "updatedFields": {"$cond": [{"$lt": [{"$bsonSize": SET}, SMALL_BYTES]}, SET, NAMES]},
        "removedFields": "$updateDescription.removedFields",
        "truncatedArrays": "$updateDescription.truncatedArrays",
    }
)
# What is left out above are whole documents, and an update's event has none. Where many updates
# come and nothing else, as while a scan writes, the server need not make a new one of each.
AS_THEY_ARE: tuple[dict[str, Any], ...] = ()
MANY_UPDATES = 32
# The embedded store reads at most 200 changes for one reply, so it is asked for all of them. Where
# a reply has fewer than half as many, there were no more: that was the history's end.
MOST_IN_REPLY = 256
SHORT_REPLY = 100

logger = logging.getLogger(__name__)


class HistoryLost(Exception):
    """The changes since the token are not to be had: forget the token and walk the collection."""


@dataclass(frozen=True)
class Change:
    """One document was inserted, replaced, updated or deleted."""

    id: Any
    kind: str
    #: Dotted names of the fields that an update set, removed or cut; None: all may have changed.
    touched: frozenset[str] | None
    cluster_time_ms: int
    #: Those of them that were removed.
    removed: frozenset[str] = frozenset()
    #: What an update set, by dotted name; nothing where that was too much for one reply.
    values: Mapping[str, Any] = field(default_factory=dict)


class Changes:
    """The changes of one collection since a token, or from now on.

    Opening raises HistoryLost if the token is of no use. A lost connection is mended once by
    opening again; if that fails, pymongo's error comes out: make another with the token later.
    """

    def __init__(
        self, collection: "Collection[dict[str, Any]]", token: Mapping[str, Any] | None = None
    ) -> None:
        self._database = collection.database
        self._name = collection.name
        self._codec = collection.codec_options.with_options(document_class=dict, tz_aware=False)
        self._identity = self._find_identity()
        self._pipeline = WITH_VALUES
        self._only_updates = False
        self._resume = self._accept(token) if token is not None else None
        self._session = self._database.client.start_session()
        try:
            self._open()
        except BaseException:
            self._session.end_session()
            raise

    @property
    def token(self) -> dict[str, Any]:
        """From here on nothing has been returned yet: to be saved once the last batch is done."""
        return {"resume": self._resume, "collection": self._identity}

    def next_batch(
        self,
        max_events: int,
        max_wait_ms: int,
        turn: AbstractContextManager[Any] | None = None,
    ) -> list[Change]:
        """The changes that are there, waiting up to `max_wait_ms` for the first.

        `turn` is entered for as long as the server is asked.
        Raises HistoryLost if there is no way on: the collection was dropped or renamed, or the
        history was cut off.
        """
        try:
            return self._collect(max_events, max_wait_ms, turn)
        except (ConnectionFailure, OperationFailure, ProtocolError) as error:
            if self._tells_less_for(error):
                self._pipeline = WITH_SMALL_VALUES
            elif not _is_transient(error):
                raise
        self._open()
        return self._collect(max_events, max_wait_ms, turn)

    def close(self) -> None:
        """Give the cursor back."""
        try:
            if self._cursor:
                self._kill(self._cursor)
        finally:
            self._session.end_session()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kill(self, cursor: int) -> None:
        # The embedded store wants a right for it, which on MongoDB everybody has for his own.
        try:
            self._command({"killCursors": self._name, "cursors": [cursor]})
        except PyMongoError:
            logger.debug("the cursor is left to its timeout", exc_info=True)

    def _find_identity(self) -> Any:
        """The collection's UUID; None if it does not exist yet."""
        for found in self._database.list_collections(filter={"name": self._name}):
            return found["info"].get("uuid")
        return None

    def _accept(self, token: Mapping[str, Any]) -> Any:
        """The server's token inside ours, if it is of this very collection.

        A restored or recreated collection has the same name and another history; not every server
        notices that a token is of another one.
        """
        identity = token.get("collection")
        if not isinstance(token.get("resume"), Mapping):
            raise HistoryLost(f"the token for {self._name} is not one of ours")
        if identity is not None and identity != self._identity:
            raise HistoryLost(f"the token is of another collection that was named {self._name}")
        return token["resume"]

    def _open(self) -> None:
        self._cursor = 0
        self._held: list[dict[str, Any]] = []
        self._proved = False
        self._at_end = -math.inf if self._resume else time.monotonic()
        try:
            found = self._watch(self._resume)
        except OperationFailure as error:
            self._refuse_lost(error)
            raise
        self._cursor = found["id"]
        self._first: dict[str, Any] | None = found if found["firstBatch"] else None
        if self._resume is None:
            self._resume = found.get("postBatchResumeToken")
        self._after = self._resume

    def _watch(self, resume: Any) -> dict[str, Any]:
        """Open a stream; its first batch is empty, so that all comes through `getMore`."""
        stage = {"$changeStream": {"resumeAfter": resume} if resume else {}}
        reply = self._command(
            {
                "aggregate": self._name,
                "pipeline": [stage, *self._pipeline],
                "cursor": {"batchSize": 0},
            }
        )
        cursor: dict[str, Any] = reply["cursor"]
        return cursor

    def _collect(
        self, max_events: int, max_wait_ms: int, turn: AbstractContextManager[Any] | None
    ) -> list[Change]:
        """Take what is there, once the first change is; the token moves when all is well."""
        behind = time.monotonic() - self._at_end > BEHIND_SECONDS
        with turn or contextlib.nullcontext():
            self._fetch(max_events, max_wait_ms)
        taken, self._held = self._held[:max_events], self._held[max_events:]
        changes = [self._read(event) for event in taken]
        if behind and changes:
            self._check_history()
        self._resume = taken[-1]["_id"] if self._held else self._after
        return changes

    def _fetch(self, max_events: int, max_wait_ms: int) -> None:
        """Ask for events until there are enough or no more; only the first is waited for."""
        while len(self._held) < max_events:
            if not self._held:
                self._suit()
            batch = self._get_more(1 if self._held else max(1, max_wait_ms))
            self._held += batch
            if any(event["operationType"] != "update" for event in batch):
                self._only_updates = False
            elif len(batch) >= MANY_UPDATES:
                self._only_updates = True
            if len(batch) < SHORT_REPLY:
                self._at_end = time.monotonic()
                break

    def _suit(self) -> None:
        """Open the stream anew where another form of events is cheaper for those that come."""
        suited = AS_THEY_ARE if self._only_updates else WITH_VALUES
        if not self._cursor or self._pipeline in (suited, WITH_SMALL_VALUES):
            return
        self._kill(self._cursor)
        self._pipeline, known = suited, (self._proved, self._at_end)
        self._open()
        self._proved, self._at_end = known

    def _check_history(self) -> None:
        """Raise HistoryLost if the history since the token is no longer whole.

        The embedded store passes over what was cut off under an open stream without an error, and
        checks only when one is opened.
        """
        try:
            self._kill(self._watch(self._resume)["id"])
        except OperationFailure as error:
            self._refuse_lost(error)
            raise

    def _get_more(self, wait_ms: int) -> list[dict[str, Any]]:
        """The next events; the token after them is noted."""
        if self._first:
            found, self._first = self._first, None
            return self._received(found, "firstBatch")
        if not self._cursor:
            raise HistoryLost(f"the stream of {self._name} has ended")
        command = {"getMore": self._cursor, "collection": self._name}
        limits = {"batchSize": MOST_IN_REPLY, "maxTimeMS": wait_ms}
        try:
            reply = self._command({**command, **limits})["cursor"]
        except OperationFailure as error:
            self._refuse_lost(error)
            raise
        self._proved = True
        self._cursor = reply["id"]
        return self._received(reply, "nextBatch")

    def _received(self, reply: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = reply[name]
        last = events[-1]["_id"] if events else self._after
        self._after = reply.get("postBatchResumeToken") or last
        return events

    def _read(self, event: dict[str, Any]) -> Change:
        kind = event["operationType"]
        if kind not in KINDS:
            raise HistoryLost(f"the collection {self._name} was dropped or renamed ({kind})")
        wall = event.get("wallTime")
        at = int(DatetimeMS(wall)) if wall else event["clusterTime"].time * 1000
        document_id = event["documentKey"]["_id"]
        if kind != "update":
            return Change(document_id, kind, None, at)
        what = event["updateDescription"]
        updated, removed = what.get("updatedFields") or {}, what.get("removedFields") or ()
        cut = [each["field"] for each in what.get("truncatedArrays") or ()]
        values = updated if isinstance(updated, Mapping) else {}
        touched = frozenset((*updated, *removed, *cut))
        return Change(document_id, kind, touched, at, frozenset(removed), values)

    def _tells_less_for(self, error: PyMongoError) -> bool:
        """Whether the next events are too much for one reply with all the values in them."""
        too_large = isinstance(error, ProtocolError) or getattr(error, "code", None) == TOO_LARGE
        return too_large and self._pipeline is not WITH_SMALL_VALUES

    def _refuse_lost(self, error: OperationFailure) -> None:
        """Raise HistoryLost if the error means that the token is of no use any more.

        A server may check the token only at the first `getMore`. What it answers to one that it
        cannot read differs from server to server: then a stream without it opens.
        """
        if self._tells_less_for(error):
            return
        if error.code in HISTORY_LOST or error.has_error_label(HISTORY_LOST_LABEL):
            raise HistoryLost(str(error)) from error
        if self._proved or self._resume is None or _is_transient(error):
            return
        try:
            self._kill(self._watch(None)["id"])
        except OperationFailure:
            return  # the token is not what is wrong
        raise HistoryLost(f"the token was refused: {error}") from error

    def _command(self, command: dict[str, Any]) -> dict[str, Any]:
        return self._database.command(command, codec_options=self._codec, session=self._session)


def _is_transient(error: PyMongoError) -> bool:
    """Whether opening the stream again is all it takes."""
    if isinstance(error, OperationFailure):
        return error.code in CURSOR_GONE or error.has_error_label(RESUMABLE_LABEL)
    return isinstance(error, ConnectionFailure)
