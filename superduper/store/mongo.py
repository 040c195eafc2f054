"""Connect to MongoDB: with timeouts, with majority writes, and with errors in our own words."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from bson.datetime_ms import DatetimeMS
from bson.errors import BSONError, InvalidDocument
from pymongo import MongoClient, timeout
from pymongo.database import Database
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    InvalidName,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from superduper.errors import (
    AlreadyExists,
    InvalidInput,
    NotAllowed,
    NotFound,
    NotReady,
    SuperduperError,
    TooLarge,
    Unauthorized,
)
from superduper.store import disks
from superduper.store.logs import redact

# A server that is gone is an error after 8 seconds, which a store that was killed needs to be back
# on a busy machine. One that took a request and is silent is given longer than any batch takes.
FIRST_SECONDS = 5.0
DEFAULTS: dict[str, Any] = {
    "appName": "superduper",
    "connectTimeoutMS": 5_000,
    "serverSelectionTimeoutMS": 8_000,
    "socketTimeoutMS": 60_000,
}

# On this machine nothing is lost on the way: who is silent is busy, or stopped. An embedded store
# that looks through a million documents for somebody is busy for longer than the driver waits for a
# sign of life before it breaks off what everybody else has asked.
LOOPBACK = ("127.0.0.1", "::1", "localhost")
LOOPBACK_CONNECT_MS = 30_000

DUPLICATE_KEY = (11000, 11001, 12582)
TOO_LARGE = (10334, 17419, 17420, 17280, 2129202)
UNAUTHORIZED = (18, 8000)
NOT_ALLOWED = (13,)
NOT_FOUND = (26,)
DISK_FULL = (14031,)
# Internal errors, shutdowns, elections, lost connections and expired times: not the caller's fault.
NOT_READY = (
    *(1, 6, 7, 8, 43, 50, 64, 79, 89, 91, 100, 133, 134, 175, 189, 202, 237, 262),
    *(9001, 10107, 11600, 11602, 13388, 13435, 13436),
)
TRANSIENT_LABELS = ("TransientTransactionError", "RetryableWriteError", "RetryableError")

CONFIGURED = re.compile(r" \(configured timeouts:[^)]*\)")
INITIATE = "mongosh --eval 'rs.initiate()'"


def connect_mongo(address: str) -> "MongoClient[dict[str, Any]]":
    """A client of the database at an address, known to answer; writes wait for the majority.

    Timeouts in the address win over ours. Raises NotReady that names the address if nobody answers,
    Unauthorized for a wrong password, InvalidInput for an address that is none.
    """
    try:
        options = _options(address)
        client: MongoClient[dict[str, Any]] = MongoClient(address, w="majority", **options)
    except (ConfigurationError, ValueError, TypeError) as error:
        raise InvalidInput(f"the address {redact(address)}: {redact(str(error))}") from error
    try:
        with database_errors(), timeout(FIRST_SECONDS):
            client.admin.command("ping")
    except SuperduperError as error:
        hint = _ghost_hint(client)
        client.close()
        raise type(error)(f"{redact(address)}: {hint or error.message}") from error
    return client


def _options(address: str) -> dict[str, Any]:
    """What is not said in the address."""
    told = urlsplit(address)
    given = {name.lower() for name, _ in parse_qsl(told.query)}
    options = {name: value for name, value in DEFAULTS.items() if name.lower() not in given}
    if "connectTimeoutMS" in options and told.hostname in LOOPBACK:
        options["connectTimeoutMS"] = LOOPBACK_CONNECT_MS
    return options


def _ghost_hint(client: "MongoClient[dict[str, Any]]") -> str | None:
    """What to do if a server of a replica set was never initiated, None if that is not it."""
    servers = client.topology_description.server_descriptions().values()
    if any(server.server_type_name == "RSGhost" for server in servers):
        return f"its replica set is not initiated yet: run `{INITIATE}` on it once"
    return None


def require_replica_set(client: "MongoClient[dict[str, Any]]") -> None:
    """Refuse a standalone server, which has no change streams: NotReady with what to do."""
    with database_errors():
        hello = client.admin.command("hello")
    if "setName" in hello or hello.get("msg") == "isdbgrid":
        return
    host, port = client.address or ("", 0)
    if hello.get("isreplicaset"):
        raise NotReady(f"the replica set at {host}:{port} is not initiated yet: run `{INITIATE}`")
    raise NotReady(
        f"the MongoDB at {host}:{port} is a standalone server, which cannot tell what changes. "
        "Make it a replica set of one; its data stay as they are: (1) stop it; (2) start it again "
        "with `mongod --replSet rs0` and its other options, or with `replication: "
        f"{{replSetName: rs0}}` in mongod.conf; (3) run `{INITIATE}` on it once; (4) connect again."
    )


def server_now_ms(database: "Database[dict[str, Any]]") -> int:
    """The database server's clock, in milliseconds since the epoch."""
    return int(DatetimeMS(database.command("hello")["localTime"]))


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn the driver's errors into ours: what failed, and what to do."""
    try:
        yield
    except DocumentTooLarge as error:
        raise TooLarge(f"the document is over MongoDB's limit of 16 MB: {error}") from error
    except (InvalidDocument, BSONError, UnicodeEncodeError) as error:
        raise InvalidInput(f"the document cannot be stored: {error}") from error
    except OverflowError as error:
        if "8-byte ints" not in str(error):
            raise
        raise InvalidInput(f"the document cannot be stored: {error}") from error
    except PyMongoError as error:
        raise translated(error) from error


def translated(error: PyMongoError) -> SuperduperError:
    """Our error for one of the driver's, with its reason where that is known."""
    ours = _translated(error)
    reason = disks.complaint() if isinstance(ours, NotReady) else None
    return NotReady(f"{reason} ({ours.message})") if reason else ours


def _translated(error: PyMongoError) -> SuperduperError:
    if isinstance(error, BulkWriteError):
        return _of_bulk(error)
    if isinstance(error, ServerSelectionTimeoutError):
        reason = CONFIGURED.sub("", str(error).split(", Timeout:")[0])
        return NotReady(f"the database does not answer ({reason}): start it, or check its address")
    if isinstance(error, ConnectionFailure):
        return NotReady(f"the connection to the database was lost: try again ({error})")
    if isinstance(error, OperationFailure):
        text = str((error.details or {}).get("errmsg") or error).split(", full error:")[0]
        labelled = any(error.has_error_label(label) for label in TRANSIENT_LABELS)
        return NotReady(text) if labelled else _of_code(error.code, text)
    if isinstance(error, InvalidName | InvalidOperation | ConfigurationError):
        return InvalidInput(str(error))
    return SuperduperError(str(error))


def _of_bulk(error: BulkWriteError) -> SuperduperError:
    """The first write that failed says what was wrong with a batch."""
    details = error.details or {}
    failed = [*details.get("writeErrors", ()), *details.get("writeConcernErrors", ())]
    if not failed:
        return SuperduperError(str(error))
    first = failed[0]
    done = details.get("nInserted", 0) + details.get("nModified", 0) + details.get("nRemoved", 0)
    where = f"write {first['index']} of the batch: " if "index" in first else ""
    return _of_code(first.get("code"), f"{where}{first.get('errmsg', '')} ({done} were done)")


def _of_code(code: int | None, text: str) -> SuperduperError:
    if code in DUPLICATE_KEY:
        return AlreadyExists(text)
    if code in TOO_LARGE:
        return TooLarge(text)
    if code in UNAUTHORIZED:
        return Unauthorized(f"the database refused the user or password: {text}")
    if code in NOT_ALLOWED:
        return NotAllowed(f"the database does not allow it: {text}")
    if code in NOT_FOUND:
        return NotFound(text)
    if code in DISK_FULL or "No space left on device" in text:
        return NotReady(f"the database's disk is full: free some space and try again ({text})")
    if code in NOT_READY:
        return NotReady(f"the database could not do it now: {text}")
    return InvalidInput(text)
