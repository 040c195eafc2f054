"""The transport that sends commands to a server over HTTP."""

import random
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx2

from superduper import commands
from superduper.command import Command
from superduper.commands import FindDocuments, InsertDocuments, StreamPrediction
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
_LONG = (
    commands.RegisterComponent,
    commands.SetTraffic,
    commands.PreviewImputation,
    commands.PredictDocuments,
    commands.PredictLater,
    commands.ExplainPrediction,
    commands.RevertVersion,
    commands.UpdateDocuments,
    commands.DeleteDocuments,
    commands.CountStates,
)
# A child process that died answers 503 too, but its input would kill the next one as well.
_PASSING = (NotReady.code, TooManyRequests.code)
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)

T = TypeVar("T")


class _Passing(Exception):
    """An error after which the same request may be sent again, after a number of seconds."""

    def __init__(self, error: SuperduperError, after: float = 0.0) -> None:
        super().__init__(error.message)
        self.error = error
        self.after = after


class HttpTransport:
    """Commands answered by a server. Connections are kept; several threads may use them.

    `timeout` (seconds) is for a command as a whole, and for each wait inside a stream; without it
    60, and 610 for what may take the server so long. What only reads is sent again while the
    server is busy or after the connection broke, and anything if it could not be sent at all, for
    up to `retry_seconds`; a server that was never reached is given up after 2.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float | None = None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.url = check_url(url)
        self._timeout = timeout
        self._retry_seconds = retry_seconds
        self._was_reached = False
        headers = {"Accept": wire.BSON, "User-Agent": f"superduper-client/{__version__}"}
        if token:
            headers["Authorization"] = f"Bearer {check_token(token)}"
        self._http = httpx2.Client(
            headers=headers,
            # A proxy named in the environment cannot reach this machine.
            trust_env=urlsplit(self.url).hostname not in _LOOPBACK,
            # Reading certificates takes 50 ms.
            verify=self.url.startswith("https:"),
            follow_redirects=False,
        )

    def send(self, command: Command) -> Any:
        """The answer to a command.

        Raises the error that the server answered; NotReady if none answers, TimedOut if it takes
        too long.
        """
        seconds = self._timeout or (LONG_SECONDS if isinstance(command, _LONG) else TIMEOUT_SECONDS)
        if isinstance(command, InsertDocuments):
            return self._insert(command, seconds)
        return self._answer(wire.call_of(command), seconds)

    def _insert(self, command: InsertDocuments, seconds: float) -> dict[str, Any]:
        ids: list[Any] = []
        for call in wire.insert_calls_of(command):
            ids += self._answer(call, seconds)["inserted_ids"]
        return {"inserted_ids": ids}

    def _answer(self, call: Call, seconds: float) -> Any:
        deadline = _Deadline(seconds)

        def attempt() -> Any:
            with self._named_errors(call), closing(self._begin(call, deadline)) as response:
                return self._result(call, response, deadline)

        return self._persist(attempt, deadline)

    def stream(
        self, command: FindDocuments | StreamPrediction
    ) -> Generator[dict[str, Any], None, None]:
        """The documents that match, or the pieces of a prediction, as they come."""
        call = wire.stream_call_of(command)
        deadline = _Deadline(self._timeout or LONG_SECONDS)

        def attempt() -> httpx2.Response:
            with self._named_errors(call):
                return self._begin_stream(call, deadline)

        try:
            with closing(self._persist(attempt, deadline)) as response, self._named_errors(call):
                rows = wire.split_rows(response.iter_bytes())
                is_prediction = isinstance(command, StreamPrediction)
                yield from wire.check_pieces(rows) if is_prediction else rows
        except _Passing as passing:  # too late to begin again: documents have been handed out
            raise passing.error from passing.__cause__

    def _begin(self, call: Call, deadline: "_Deadline") -> httpx2.Response:
        headers = {} if call.body is None else {"Content-Type": wire.BSON}
        request = self._http.build_request(
            call.method,
            self.url + call.path,
            params=call.query or None,
            content=call.body,
            headers=headers,
            timeout=deadline.left(self.url),
        )
        response = self._http.send(request, stream=True)
        self._was_reached = True
        return response

    def _begin_stream(self, call: Call, deadline: "_Deadline") -> httpx2.Response:
        response = self._begin(call, deadline)
        if response.status_code == 200 and wire.is_bson(_media_type(response)):
            return response
        with closing(response):
            self._result(call, response, deadline)
        raise SuperduperError(f"{self.url} answered a query, not as a Superduper server does")

    def _result(self, call: Call, response: httpx2.Response, deadline: "_Deadline") -> Any:
        parts = []
        for part in response.iter_bytes():
            parts.append(part)
            deadline.left(self.url)
        kind, body = _media_type(response), b"".join(parts)
        try:
            return wire.result_of(response.status_code, kind, body, self.url)
        except (NotReady, TooManyRequests) as error:
            if not call.is_repeatable or error.code not in _PASSING:
                raise
            raise _Passing(error, _retry_after(response)) from error.__cause__

    def _persist(self, attempt: Callable[[], T], deadline: "_Deadline") -> T:
        """Attempt until it succeeds, fails for good, or there is no time left to try again."""
        began = time.monotonic()
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return attempt()
            except _Passing as passing:
                wait = passing.after or random.uniform(pause / 2, pause)
                if time.monotonic() + wait > min(began + self._patience(), deadline.at):
                    raise passing.error from passing.__cause__
            time.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _patience(self) -> float:
        first = min(FIRST_CONTACT_SECONDS, self._retry_seconds)
        return self._retry_seconds if self._was_reached else first

    @contextmanager
    def _named_errors(self, call: Call) -> Iterator[None]:
        """What httpx raises, as errors of ours that name the server."""
        try:
            yield
        except _UNSENT as error:
            raise _Passing(self._unreachable(error)) from error
        except httpx2.TimeoutException as error:
            raise TimedOut(
                f"{self.url} did not answer {call.method} {call.path} in time"
            ) from error
        except (httpx2.TransportError, httpx2.StreamError) as error:
            text = f"the connection to {self.url} broke during {call.method} {call.path}"
            if call.is_repeatable:
                raise _Passing(NotReady(f"{text}: try again")) from error
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

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class _Deadline:
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
            raise TimedOut(f"no complete answer from {url} within {self.seconds:g} s")
        return left


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


def _media_type(response: httpx2.Response) -> str:
    return str(response.headers.get("Content-Type", ""))


def _retry_after(response: httpx2.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", text) else 0.0
