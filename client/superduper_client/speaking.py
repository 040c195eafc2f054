"""What both transports over HTTP have in common: how long, how often, and what an answer means."""

import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urlsplit

import httpx2

from superduper.command import Command
from superduper.errors import InvalidInput, NotReady, SuperduperError, TimedOut, TooManyRequests
from superduper.version import __version__
from superduper_client import wire
from superduper_client.wire import Call

TIMEOUT_SECONDS: Final = 60.0
LONG_SECONDS: Final = 610.0
"""For what may take the server ten minutes, so that its own limit comes first."""

RETRY_SECONDS: Final = 10.0
FIRST_CONTACT_SECONDS: Final = 2.0
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 2.0

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TOKEN = re.compile(r"[!-~]+")
# A child process that died answers 503 too, but its input would kill the next one as well.
_PASSING = (NotReady.code, TooManyRequests.code)
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)


H = TypeVar("H", httpx2.Client, httpx2.AsyncClient)


class Passing(Exception):
    """An error after which the same request may be sent again, after a number of seconds."""

    def __init__(self, error: SuperduperError, after: float = 0.0) -> None:
        super().__init__(error.message)
        self.error = error
        self.after = after


class Deadline:
    """When a command has to be answered."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at = time.monotonic() + seconds

    def left(self, url: str) -> float:
        """Seconds until then.

        Raises TimedOut if there are none.
        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise self.passed(url)
        return left

    def passed(self, url: str) -> TimedOut:
        """The error for a command that was not answered by then."""
        return TimedOut(f"no complete answer from {url} within {self.seconds:g} s")


class Speaker(Generic[H]):
    """Speaks to one server: its address, patience and errors."""

    _connect: type[H]

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float | None = None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.url = check_url(url)
        self._http: H = self._connect(**options_of(self.url, token))
        self.timeout = timeout
        self._retry_seconds = retry_seconds
        self.was_reached = False

    def seconds_for(self, command: Command) -> float:
        """How long a command may take."""
        return self.timeout or (LONG_SECONDS if command.route.takes_long else TIMEOUT_SECONDS)

    def asked(self, call: Call, deadline: Deadline) -> dict[str, Any]:
        """What httpx is told of a call."""
        return {
            "method": call.method,
            "url": self.url + call.path,
            "params": call.query or None,
            "content": call.body,
            "headers": {} if call.body is None else {"Content-Type": wire.BSON},
            "timeout": deadline.left(self.url),
        }

    def is_stream(self, response: httpx2.Response) -> bool:
        """Whether an answer goes on, row by row."""
        return bool(response.status_code == 200 and wire.is_bson(media_type(response)))

    def read(self, call: Call, response: httpx2.Response, body: bytes) -> Any:
        """The value that was answered.

        Raises the error that was answered, as Passing if the same may be asked again.
        """
        kind = media_type(response)
        try:
            return wire.result_of(response.status_code, kind, body, self.url)
        except (NotReady, TooManyRequests) as error:
            if not call.is_repeatable or error.code not in _PASSING:
                raise
            raise Passing(error, _retry_after(response)) from error.__cause__

    def patience(self) -> float:
        """Seconds for which it is worth trying: few while nothing has ever answered."""
        first = min(FIRST_CONTACT_SECONDS, self._retry_seconds)
        return self._retry_seconds if self.was_reached else first

    @contextmanager
    def named_errors(self, call: Call) -> Iterator[None]:
        """What httpx raises, as errors of ours that name the server."""
        try:
            yield
        except _UNSENT as error:
            raise Passing(self._unreachable(error)) from error
        except httpx2.TimeoutException as error:
            raise TimedOut(
                f"{self.url} did not answer {call.method} {call.path} in time"
            ) from error
        except (httpx2.TransportError, httpx2.StreamError) as error:
            text = f"the connection to {self.url} broke during {call.method} {call.path}"
            if call.is_repeatable:
                raise Passing(NotReady(f"{text}: try again")) from error
            raise NotReady(
                f"{text}: it may have been done or not, look before you repeat"
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise InvalidInput(f"{self.url}: {error!s:.200}") from error

    def _unreachable(self, error: Exception) -> NotReady:
        return NotReady(
            f"nothing answers at {self.url} ({error!s:.100}): start a server with `superduper "
            "serve` or `superduper up`, or check the URL"
        )


def options_of(url: str, token: str | None) -> dict[str, Any]:
    """How httpx is set up for a server, with or without asyncio.

    Raises InvalidInput for a token that cannot be one.
    """
    headers = {"Accept": wire.BSON, "User-Agent": f"superduper-client/{__version__}"}
    if token:
        headers["Authorization"] = f"Bearer {check_token(token)}"
    return {
        "headers": headers,
        # A proxy named in the environment cannot reach this machine.
        "trust_env": urlsplit(url).hostname not in _LOOPBACK,
        # Reading certificates takes 50 ms.
        "verify": url.startswith("https:"),
        "follow_redirects": False,
    }


class Pauses:
    """When to try again: a little later each time, as long as there is time."""

    def __init__(self, deadline: Deadline) -> None:
        self._began = time.monotonic()
        self._deadline = deadline
        self._next = FIRST_PAUSE_SECONDS

    def after(self, passing: Passing, patience: float) -> float:
        """Seconds to wait after an error that may pass.

        Raises that error if there is no time left to try again.
        """
        wait = passing.after or random.uniform(self._next / 2, self._next)
        if time.monotonic() + wait > min(self._began + patience, self._deadline.at):
            raise passing.error from passing.__cause__
        self._next = min(self._next * 2, LONGEST_PAUSE_SECONDS)
        return wait


def check_url(url: str) -> str:
    """The address of a server, without a slash at its end.

    Raises InvalidInput if it is none.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidInput(
            "a server's URL is like http://127.0.0.1:8000, without user, password or query; "
            "the token goes into token=, or SUPERDUPER_TOKEN"
        )
    return url.rstrip("/")


def check_token(token: str) -> str:
    """A token without the line break that reading it from a file leaves.

    Raises InvalidInput if it cannot stand in a header.
    """
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise InvalidInput("the token contains characters that no token has: copy it again")
    return token


def media_type(response: httpx2.Response) -> str:
    """The media type of an answer."""
    return str(response.headers.get("Content-Type", ""))


def _retry_after(response: httpx2.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", text) else 0.0
