"""Who may do what: one guard around the whole app that refuses whatever is not listed."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NoReturn

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match

from superduper.command import Role
from superduper.errors import NotAllowed, SuperduperError, TooManyRequests, Unauthorized
from superduper.store.mongo import database_errors
from superduper_server.ledger import Ledger, OwnLedger
from superduper_server.limits import Application, Receive, Scope, Send
from superduper_server.origins import TrustedHosts
from superduper_server.pool import Pool
from superduper_server.shares import Shares
from superduper_server.tokens import INSECURE, TOKEN, Identity, Tokens, matches

logger = logging.getLogger(__name__)

CACHE_SECONDS = 2.0
FRESH_SECONDS = 1.0
"""Who asks often is looked up again after this time, so that nobody need wait for it."""

CACHE_SIZE = 10_000
NEVER: tuple[float, None] = (0.0, None)
WINDOW_SECONDS = 60.0
LOOKUP_SECONDS = 10.0

CODE_IS_CLOSED = (
    "this server takes no code: register from a program that reaches the database itself, or start "
    "the server with --register-code"
)

Lookup = asyncio.Task[dict[str, Any] | None]
"""A look-up of a token's record."""

# Which role a route needs, by method and path template; None is for everybody.
Table = Mapping[tuple[str, str], Role | None]


class TooManyFailures(TooManyRequests):
    """Too many wrong tokens came from this address: try again in a minute."""

    retry_after = int(WINDOW_SECONDS)


class FailureLimit:
    """Counts wrong tokens per address and minute."""

    def __init__(
        self,
        most: int,
        clock: Callable[[], float] = time.monotonic,
        ledger: Ledger | None = None,
    ) -> None:
        self.most = most
        self._clock = clock
        self._ledger = ledger or OwnLedger()

    def note(self, address: str) -> None:
        """Count one more."""
        with self._ledger:
            count, begun = self._ledger.note(address) or (0.0, self._clock())
            if self._clock() - begun >= WINDOW_SECONDS:
                count, begun = 0.0, self._clock()
            self._ledger.write(address, count + 1, begun)

    def is_reached(self, address: str) -> bool:
        """Whether the address has used up its tries."""
        count, begun = self._ledger.note(address) or (0.0, 0.0)
        return count >= self.most and self._clock() - begun < WINDOW_SECONDS


class Authenticator:
    """Turns an `Authorization` header into an identity.

    A record is kept for at most two seconds, so that revoking works at once for all purposes. An
    address with too many wrong tokens gets no more look-ups; who was known before still comes
    through, so that a stranger behind the same proxy cannot lock anybody out.
    """

    def __init__(
        self,
        tokens: Tokens,
        pool: Pool,
        failures: FailureLimit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tokens = tokens
        self.failures = failures
        self._pool = pool
        self._clock = clock
        self._cache: OrderedDict[str, tuple[float, dict[str, Any]]] = OrderedDict()
        # Headers whose secret was compared with a record: it need not be again with the same one.
        self._compared: OrderedDict[str, tuple[dict[str, Any], Identity]] = OrderedDict()
        self._notes: set[asyncio.Task[None]] = set()
        self._lookups: dict[str, tuple[float, Lookup]] = {}

    async def identify(self, authorization: str, address: str) -> Identity:
        """Who it is.

        Raises Unauthorized, TooManyFailures, or NotReady if the database does not answer.
        """
        scheme, _, text = authorization.partition(" ")
        if not authorization:
            raise Unauthorized("a token is needed: send `Authorization: Bearer <token>`")
        found = TOKEN.fullmatch(text.strip()) if scheme.lower() == "bearer" else None
        record = None if found is None else await self._record(found[1], address)
        if found is None or not matches(record, found[2]) or record is None:
            self._refuse_stranger(address)
        if not self.tokens.is_valid(record):
            raise Unauthorized("the token has expired or was revoked")
        self._note_use(record)
        return _identity_of(record)

    def identify_now(self, authorization: str) -> Identity | None:
        """Who it is, if that needs no look-up; None says nothing."""
        found = self._known(authorization)
        if found is None:
            return None
        record, identity = found
        age = self._clock() - self._cache[record["_id"]][0]
        if age >= CACHE_SECONDS or not self.tokens.is_valid(record):
            return None
        if age >= FRESH_SECONDS:
            self._look_up(record["_id"])
        self._note_use(record)
        return identity

    def identify_soon(self, authorization: str) -> Lookup | None:
        """The look-up after which `identify_now` may know again who it is; None if none helps."""
        found = self._known(authorization)
        if found is None:
            return None
        id = found[0]["_id"]
        is_old = self._clock() - self._cache[id][0] >= CACHE_SECONDS
        return self._look_up(id) if is_old else None

    def _known(self, authorization: str) -> tuple[dict[str, Any], Identity] | None:
        """The record that is remembered, however old it is, and whose it is."""
        found = self._compared.get(authorization)
        if found is None or self._cache.get(found[0]["_id"], NEVER)[1] is not found[0]:
            found = self._compare(authorization)
        return found

    def _compare(self, authorization: str) -> tuple[dict[str, Any], Identity] | None:
        self._compared.pop(authorization, None)
        scheme, _, text = authorization.partition(" ")
        found = TOKEN.fullmatch(text.strip()) if scheme.lower() == "bearer" else None
        record = self._cache.get(found[1], NEVER)[1] if found else None
        if found is None or record is None or not matches(record, found[2]):
            return None
        compared = self._compared[authorization] = record, _identity_of(record)
        if len(self._compared) > CACHE_SIZE:
            self._compared.popitem(last=False)
        return compared

    def _refuse_stranger(self, address: str) -> NoReturn:
        if self.failures.is_reached(address):
            raise TooManyFailures
        self.failures.note(address)
        raise Unauthorized("the token is not valid")

    async def _record(self, id: str, address: str) -> dict[str, Any] | None:
        read_at, record = self._cache.get(id, NEVER)
        age = self._clock() - read_at
        if record is not None and age < CACHE_SECONDS:
            if age >= FRESH_SECONDS:
                self._look_up(id)
            return record
        if record is None and self.failures.is_reached(address):
            raise TooManyFailures
        return await self._read(id, self._clock())

    def _look_up(self, id: str) -> Lookup:
        """The look-up that short ways wait for: one that has just begun, or else a new one."""
        now = self._clock()
        begun, task = self._lookups.get(id, (0.0, None))
        if task is None or now - begun >= FRESH_SECONDS:
            task = asyncio.create_task(self._read(id, now))
            self._lookups[id] = now, task
            task.add_done_callback(lambda task: self._looked_up(id, task))
        return task

    async def _read(self, id: str, asked_at: float) -> dict[str, Any] | None:
        record = await self._pool.run(lambda: self._find(id), seconds=LOOKUP_SECONDS)
        if asked_at >= self._cache.get(id, NEVER)[0]:
            self._remember(id, asked_at, record)
        return record

    def _looked_up(self, id: str, task: Lookup) -> None:
        if self._lookups.get(id, NEVER)[1] is task:
            del self._lookups[id]
        error = None if task.cancelled() else task.exception()
        if error is not None:  # whoever waits for it is told, or looks up again
            logger.warning("token %s not found: %s", id, error, extra={"event": "token.find"})

    def _find(self, id: str) -> dict[str, Any] | None:
        with database_errors():
            return self.tokens.find(id)

    def _remember(self, id: str, asked_at: float, record: dict[str, Any] | None) -> None:
        self._cache.pop(id, None)
        if record is not None:
            self._cache[id] = (asked_at, record)
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)

    def _note_use(self, record: dict[str, Any]) -> None:
        if self.tokens.is_use_noted(record):
            return
        id = record["_id"]
        record["last_used"] = int(time.time() * 1000)  # the cached copy: asks only once a minute
        task = asyncio.create_task(self._write_use(id))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _write_use(self, id: str) -> None:
        try:
            await self._pool.run(lambda: self._note_in_database(id), seconds=LOOKUP_SECONDS)
        except SuperduperError as error:
            # The request itself is fine; the next one tries again a minute later.
            logger.warning(
                "use of token %s not noted: %s", id, error, extra={"event": "token.note"}
            )

    def _note_in_database(self, id: str) -> None:
        with database_errors():
            self.tokens.note_use(id)


def _identity_of(record: Mapping[str, Any]) -> Identity:
    return Identity(record["_id"], record["role"], record.get("rate"), record.get("at_once"))


class Guard:
    """ASGI layer: no token, no answer; no entry in the table, no answer either.

    Without an authenticator (`--insecure`) everybody is an administrator; `hosts` then keeps out
    all but loopback.
    """

    def __init__(
        self,
        app: Application,
        table: Table,
        closed: frozenset[tuple[str, str]],
        authenticator: Authenticator | None,
        shares: Shares,
        hosts: TrustedHosts,
    ) -> None:
        self.app = app
        self.hosts = hosts
        self.table = table
        self.closed = closed
        self.authenticator = authenticator
        self.shares = shares

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._check(scope)
        identity = scope.get("identity", INSECURE)
        with nullcontext() if identity is INSECURE else self.shares.taken(identity):
            await self.app(scope, receive, send)

    async def _check(self, scope: Scope) -> None:
        route = find_route(scope["app"].routes, scope)
        key = (scope["method"], getattr(route, "path", ""))
        scope["route"] = route  # for the figures: the router is not reached by who is refused
        if route is not None and key in self.table and self.table[key] is None:
            return
        identity = await self._identify(scope)
        scope["identity"] = identity
        if route is None:
            return  # the router answers 404 or 405, and only to somebody we know
        role = self.table.get(key)
        if role is None:
            raise NotAllowed(f"nobody may use {key[0]} {key[1]}: it has no entry in the role table")
        if not identity.may(role):
            raise NotAllowed(f"this needs the role {role}; the token's role is {identity.role}")
        if key in self.closed:
            raise NotAllowed(CODE_IS_CLOSED)

    async def _identify(self, scope: Scope) -> Identity:
        headers = Headers(scope=scope)
        self.hosts.check(headers)
        if self.authenticator is None:
            return INSECURE
        address = (scope.get("client") or ("",))[0]
        return await self.authenticator.identify(headers.get("authorization", ""), address)


class QuickGuard:
    """The part of the guard that needs no look-up: whom it does not let pass, the guard answers."""

    def __init__(
        self,
        table: Table,
        authenticator: Authenticator | None,
        shares: Shares,
        hosts: TrustedHosts,
    ) -> None:
        self._table = table
        self._hosts = hosts
        self._authenticator = authenticator
        self._shares = shares

    def admit(self, method: str, template: str, headers: Mapping[str, str]) -> Identity | None:
        """Who asks, if it is known that this may be done; None if not, or not yet."""
        try:
            self._hosts.check(headers)
        except NotAllowed:
            return None
        if self._authenticator is None:
            identity: Identity | None = INSECURE
        else:
            identity = self._authenticator.identify_now(headers.get("authorization", ""))
        role = self._table.get((method, template))
        return identity if identity and role and identity.may(role) else None

    def look_up(self, headers: Mapping[str, str]) -> Lookup | None:
        """The look-up after which `admit` may let somebody pass; None if none helps."""
        if self._authenticator is None:
            return None
        return self._authenticator.identify_soon(headers.get("authorization", ""))

    def take(self, identity: Identity) -> None:
        """One more request of somebody, until it is given back; see `Shares.take`."""
        if identity is not INSECURE:
            self._shares.take(identity)

    def give_back(self, identity: Identity) -> None:
        """The request has ended."""
        if identity is not INSECURE:
            self._shares.give_back(identity)


def find_route(routes: list[BaseRoute], scope: Scope) -> BaseRoute | None:
    """The route that will answer, by the router's own rule: the first that matches in full."""
    for route in routes:
        if route.matches(scope)[0] is Match.FULL:
            return route
    return None
