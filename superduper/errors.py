"""Every error a user of Superduper can catch.

SuperduperError
├── InvalidInput            422  the request itself is wrong
│   └── TooLarge            413  ... because it is too big
├── Unauthorized            401  no token, or a wrong one
├── NotAllowed              403  the token may not do this
├── NotFound                404  nothing has that name
├── AlreadyExists           409  something else has that name
├── InUse                   409  something still needs it
├── ArtifactRejected        409  a sealed object failed its signature, hash or version check
├── UserCodeError           422  a registered function or model raised
├── TooManyRequests         429  a queue or a rate is full
├── NotReady                503  the database, a worker or a model host is not there (yet)
│   └── ChildDied           503  the process that ran user code died
├── TimedOut                504  the deadline passed
├── MissingExtra            501  an optional dependency is not installed
└── LostLease               ---  internal: another worker has taken over

A class is found by its `code`, so the same class arrives in-process and over HTTP.
"""

from collections.abc import Iterator
from typing import ClassVar


class SuperduperError(Exception):
    """Something went wrong inside Superduper."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    @property
    def message(self) -> str:
        """The text for people: what failed, which one, what to do."""
        return str(self.args[0])


class InvalidInput(SuperduperError):
    """The request is not valid."""

    code = "invalid_input"
    status = 422


class TooLarge(InvalidInput):
    """The request is too large."""

    code = "too_large"
    status = 413


class Unauthorized(SuperduperError):
    """A valid token is needed: pass `Authorization: Bearer <token>`."""

    code = "unauthorized"
    status = 401


class NotAllowed(SuperduperError):
    """The token's role does not allow this."""

    code = "not_allowed"
    status = 403


class NotFound(SuperduperError):
    """There is nothing of that name."""

    code = "not_found"
    status = 404


class AlreadyExists(SuperduperError):
    """The name is taken by something else."""

    code = "already_exists"
    status = 409


class InUse(SuperduperError):
    """It is still in use."""

    code = "in_use"
    status = 409


class ArtifactRejected(SuperduperError):
    """A sealed object failed verification and was not loaded."""

    code = "artifact_rejected"
    status = 409


class UserCodeError(SuperduperError):
    """A registered function or model raised an exception."""

    code = "user_code"
    status = 422


class TooManyRequests(SuperduperError):
    """Too many requests are waiting: try again in a moment."""

    code = "too_many_requests"
    status = 429


class NotReady(SuperduperError):
    """A part that is needed is not there yet: try again in a moment."""

    code = "not_ready"
    status = 503
    retry_after: int = 1
    """Seconds after which it is worth to try again."""


class ChildDied(NotReady):
    """The process that ran user code died."""

    code = "child_died"
    position: int | None = None
    """Which of several values it was at, if that is known."""


class TimedOut(SuperduperError, TimeoutError):
    """It took longer than the time allowed."""

    code = "timed_out"
    status = 504
    position: int | None = None
    """Which of several values it was at, if that is known."""


class MissingExtra(SuperduperError, ImportError):
    """An optional dependency is not installed."""

    code = "missing_extra"
    status = 501

    @classmethod
    def of(cls, extra: str, purpose: str) -> "MissingExtra":
        """The error for a missing optional dependency, with the command that installs it."""
        command = f"pip install 'superduper-imputations[{extra}]'"
        return cls(f"{purpose} needs the extra {extra!r}: {command}")


class LostLease(SuperduperError):
    """Another worker has taken over; this one must stop writing."""

    code = "lost_lease"


def _walk(base: type[SuperduperError]) -> Iterator[type[SuperduperError]]:
    yield base
    for child in base.__subclasses__():
        yield from _walk(child)


def error_of(code: str, message: str) -> SuperduperError:
    """The error instance for a code and a message that came over the wire."""
    for candidate in _walk(SuperduperError):
        if candidate.code == code:
            return candidate(message)
    return SuperduperError(message)
