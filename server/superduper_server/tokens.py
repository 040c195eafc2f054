"""Tokens in the database: who may use a server, and as what."""

import hashlib
import hmac
import re
import secrets
import string
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pymongo.database import Database

from superduper.command import Role
from superduper.errors import NotFound, Unauthorized
from superduper.store.audit import Audit

ROLES: tuple[Role, ...] = ("reader", "writer", "trainer", "admin")
TOKEN = re.compile(r"sd_([a-z0-9]{8})_([A-Za-z0-9_-]{43})")
ID_LETTERS = string.ascii_lowercase + string.digits
# What an unknown id is compared with, so that it takes as long as a known one.
NOBODY_HASH = hashlib.sha256(secrets.token_bytes(32)).hexdigest()
MINUTE_MS = 60_000


@dataclass(frozen=True)
class Identity:
    """Who sends a request."""

    id: str
    role: Role
    rate: float | None = None
    at_once: int | None = None

    def may(self, role: Role) -> bool:
        """Whether this role includes that one."""
        return ROLES.index(self.role) >= ROLES.index(role)


INSECURE = Identity("insecure", "admin")
"""Everybody, on a server that asks for no tokens."""


def hash_of(secret: str) -> str:
    """What is stored of a secret: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Tokens:
    """The collection `superduper.tokens` of one database; holds hashes, never secrets."""

    def __init__(self, database: Database[Any], clock: Callable[[], float] = time.time) -> None:
        self.documents = database["superduper.tokens"]
        self._audit = Audit(database)
        self._clock = clock
        self._revoked_here: set[str] = set()

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def create(
        self,
        role: Role,
        *,
        seconds: float | None = None,
        rate: float | None = None,
        at_once: int | None = None,
        author: str = "",
    ) -> dict[str, Any]:
        """A new token. Its text is in the answer under `token`, and nowhere else ever after.

        `rate` and `at_once` limit its requests a second and at once, instead of the server's own.
        """
        id = "".join(secrets.choice(ID_LETTERS) for _ in range(8))
        secret = secrets.token_urlsafe(32)
        now = self._now()
        record = {
            "_id": id,
            "hash": hash_of(secret),
            "role": role,
            "created_at": now,
            "created_by": author,
            "expires_at": None if seconds is None else now + int(seconds * 1000),
            "rate": rate,
            "at_once": at_once,
            "last_used": None,
            "revoked": False,
        }
        self._audit.append(who=author, action="CreateToken", subject=f"id={id} role={role}")
        self.documents.insert_one(record)
        return {"token": f"sd_{id}_{secret}", **_shown(record)}

    def list(self) -> list[dict[str, Any]]:
        """All tokens, oldest first, without their hashes."""
        return [_shown(record) for record in self.documents.find().sort("created_at", 1)]

    def revoke(self, id: str, *, author: str = "") -> dict[str, Any]:
        """Make a token worthless.

        Raises NotFound if there is none with this id.
        """
        record = self.documents.find_one_and_update(
            {"_id": id}, {"$set": {"revoked": True}}, return_document=True
        )
        if record is None:
            raise NotFound(f"there is no token {id[:64]!r}; `superduper token list` shows them")
        self._audit.append(who=author, action="RevokeToken", subject=f"id={id}")
        self.note_revoked(id)
        return _shown(record)

    def note_revoked(self, id: str) -> None:
        """It is worthless, also for whoever still holds an older copy of its record."""
        self._revoked_here.add(id)

    def find(self, id: str) -> dict[str, Any] | None:
        """A token's record, with its hash."""
        return self.documents.find_one({"_id": id})

    def has_admin(self) -> bool:
        """Whether anybody can administrate."""
        return any(
            self.is_valid(record)
            for record in self.documents.find({"role": "admin", "revoked": False})
        )

    def is_valid(self, record: Mapping[str, Any]) -> bool:
        """Whether a token is neither revoked nor expired."""
        if record["revoked"] or record["_id"] in self._revoked_here:
            return False
        expires_at = record["expires_at"]
        return expires_at is None or expires_at > self._now()

    def check(self, identity: Identity) -> None:
        """Raise Unauthorized if who was let in must not stay: for answers that go on."""
        if identity is INSECURE:
            return
        record = self.find(identity.id)
        if record is None or not self.is_valid(record):
            raise Unauthorized("the token has expired or was revoked")

    def is_use_noted(self, record: Mapping[str, Any]) -> bool:
        """Whether its last use was written down within the last minute."""
        return (record["last_used"] or 0) > self._now() - MINUTE_MS

    def note_use(self, id: str) -> None:
        """Write down that a token was used."""
        self.documents.update_one({"_id": id}, {"$max": {"last_used": self._now()}})


def matches(record: Mapping[str, Any] | None, secret: str) -> bool:
    """Whether a secret is a record's; takes equally long where there is no record."""
    expected = NOBODY_HASH if record is None else record["hash"]
    return hmac.compare_digest(hash_of(secret), expected) and record is not None


def _shown(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": record["_id"],
        **{key: value for key, value in record.items() if key not in ("_id", "hash")},
    }
