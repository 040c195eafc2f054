"""Follow one collection's changes: ids and names of fields, never whole documents.

The stream is a hint, the collection is the truth: a reader takes ids from here and reads the
documents afresh. A token is saved after the work for a batch is done; when the history between a
token and now is gone, HistoryLost says so, and the reader walks the collection instead.
"""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from bson.datetime_ms import DatetimeMS
from pymongo.collection import Collection
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

# History gone, fatal stream, invalid token, event over 16 MB. The embedded store sets no label.
HISTORY_LOST = (286, 280, 260, 10334)
HISTORY_LOST_LABEL = "NonResumableChangeStreamError"
CURSOR_GONE = (43, 237)  # not found, killed: the server was restarted or has cleaned up
RESUMABLE_LABEL = "ResumableChangeStreamError"
# A stream that has not been at the history's end for so long may have been overtaken by its cut.
BEHIND_SECONDS = 5.0
ENDINGS = ("drop", "rename", "dropDatabase", "invalidate")

NAMES = {
    "$map": {"input": {"$objectToArray": "$updateDescription.updatedFields"}, "in": "$$this.k"}
}
PIPELINE: tuple[dict[str, Any], ...] = (
    {"$match": {"operationType": {"$in": ["insert", "replace", "update", "delete", *ENDINGS]}}},
    {
        "$project": {
            "operationType": 1,
            "documentKey._id": 1,
            "clusterTime": 1,
            "wallTime": 1,
            "updated": NAMES,
            "updateDescription.removedFields": 1,
            "updateDescription.truncatedArrays.field": 1,
        }
    },
)

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

    def next_batch(self, max_events: int, max_wait_ms: int) -> list[Change]:
        """The changes that are there, waiting up to `max_wait_ms` for the first.

        Raises HistoryLost if there is no way on: the collection was dropped or renamed, or the
        history was cut off.
        """
        try:
            return self._collect(max_events, max_wait_ms)
        except (ConnectionFailure, OperationFailure) as error:
            if not _is_transient(error):
                raise
        self._open()
        return self._collect(max_events, max_wait_ms)

    def close(self) -> None:
        """Give the cursor back."""
        try:
            if self._cursor:
                self._kill(self._cursor)
        except PyMongoError:
            logger.debug("the cursor is left to its timeout", exc_info=True)
        finally:
            self._session.end_session()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kill(self, cursor: int) -> None:
        self._command({"killCursors": self._name, "cursors": [cursor]})

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

    def _watch(self, resume: Any) -> dict[str, Any]:
        """Open a stream; its first batch is empty, so that all comes through `getMore`."""
        stage = {"$changeStream": {"resumeAfter": resume} if resume else {}}
        reply = self._command(
            {"aggregate": self._name, "pipeline": [stage, *PIPELINE], "cursor": {"batchSize": 0}}
        )
        cursor: dict[str, Any] = reply["cursor"]
        return cursor

    def _collect(self, max_events: int, max_wait_ms: int) -> list[Change]:
        """Wait for the first change, then take what is there; the token moves when all is well."""
        changes: list[Change] = []
        token = self._resume
        behind = time.monotonic() - self._at_end > BEHIND_SECONDS
        wait_ms = max(1, max_wait_ms)
        while len(changes) < max_events:
            batch, after = self._get_more(max_events - len(changes), wait_ms)
            changes += [self._read(event) for event in batch]
            token = after or (batch[-1]["_id"] if batch else token)
            if not batch:
                self._at_end = time.monotonic()
                break
            wait_ms = 1
        if behind and changes:
            self._check_history()
        self._resume = token
        return changes

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

    def _get_more(self, size: int, wait_ms: int) -> tuple[list[dict[str, Any]], Any]:
        """The next events, and the token after them."""
        if self._first:
            found, self._first = self._first, None
            return found["firstBatch"], found.get("postBatchResumeToken")
        if not self._cursor:
            raise HistoryLost(f"the stream of {self._name} has ended")
        command = {"getMore": self._cursor, "collection": self._name}
        try:
            reply = self._command({**command, "batchSize": size, "maxTimeMS": wait_ms})["cursor"]
        except OperationFailure as error:
            self._refuse_lost(error)
            raise
        self._proved = True
        self._cursor = reply["id"]
        return reply["nextBatch"], reply.get("postBatchResumeToken")

    def _read(self, event: dict[str, Any]) -> Change:
        kind = event["operationType"]
        if kind in ENDINGS:
            raise HistoryLost(f"the collection {self._name} was dropped or renamed ({kind})")
        wall = event.get("wallTime")
        at = int(DatetimeMS(wall)) if wall else event["clusterTime"].time * 1000
        return Change(event["documentKey"]["_id"], kind, _touched(event), at)

    def _refuse_lost(self, error: OperationFailure) -> None:
        """Raise HistoryLost if the error means that the token is of no use any more.

        A server may check the token only at the first `getMore`. What it answers to one that it
        cannot read differs from server to server: then a stream without it opens.
        """
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


def _touched(event: dict[str, Any]) -> frozenset[str] | None:
    if event["operationType"] != "update":
        return None
    how = event.get("updateDescription") or {}
    cut = [array["field"] for array in how.get("truncatedArrays") or ()]
    return frozenset([*(event.get("updated") or ()), *(how.get("removedFields") or ()), *cut])


def _is_transient(error: PyMongoError) -> bool:
    """Whether opening the stream again is all it takes."""
    if isinstance(error, OperationFailure):
        return error.code in CURSOR_GONE or error.has_error_label(RESUMABLE_LABEL)
    return isinstance(error, ConnectionFailure)
