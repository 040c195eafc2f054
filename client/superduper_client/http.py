"""The transport that sends commands to a server over HTTP."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TypeVar

import httpx2

from superduper.command import Command
from superduper.commands import FindDocuments, InsertDocuments, StreamPrediction
from superduper.errors import SuperduperError
from superduper_client import wire
from superduper_client.speaking import (
    LONG_SECONDS,
    Deadline,
    Passing,
    Pauses,
    Speaker,
)
from superduper_client.wire import Call

T = TypeVar("T")


class HttpTransport(Speaker[httpx2.Client]):
    """Commands answered by a server. Connections are kept; several threads may use them.

    `timeout` (seconds) is for a command as a whole, and for each wait inside a stream; without it
    60, and 610 for what may take the server so long. What only reads is sent again while the
    server is busy or after the connection broke, and anything if it could not be sent at all, for
    up to `retry_seconds`; a server that was never reached is given up after 2.
    """

    _connect = httpx2.Client

    def send(self, command: Command) -> Any:
        """The answer to a command.

        Raises the error that the server answered; NotReady if none answers, TimedOut if it takes
        too long.
        """
        seconds = self.seconds_for(command)
        if isinstance(command, InsertDocuments):
            return self._insert(command, seconds)
        return self._answer(wire.call_of(command), seconds)

    def _insert(self, command: InsertDocuments, seconds: float) -> dict[str, Any]:
        ids: list[Any] = []
        for call in wire.insert_calls_of(command):
            ids += self._answer(call, seconds)["inserted_ids"]
        return {"inserted_ids": ids}

    def _answer(self, call: Call, seconds: float) -> Any:
        deadline = Deadline(seconds)

        def attempt() -> Any:
            with self.named_errors(call), closing(self._begin(call, deadline)) as response:
                return self._result(call, response, deadline)

        return self._persist(attempt, deadline)

    def stream(
        self, command: FindDocuments | StreamPrediction
    ) -> Generator[dict[str, Any], None, None]:
        """The documents that match, or the pieces of a prediction, as they come."""
        call = wire.stream_call_of(command)
        deadline = Deadline(self.timeout or LONG_SECONDS)

        def attempt() -> httpx2.Response:
            with self.named_errors(call):
                return self._begin_stream(call, deadline)

        try:
            with closing(self._persist(attempt, deadline)) as response, self.named_errors(call):
                rows = wire.split_rows(response.iter_bytes())
                is_prediction = isinstance(command, StreamPrediction)
                yield from wire.check_pieces(rows) if is_prediction else rows
        except Passing as passing:  # too late to begin again: documents have been handed out
            raise passing.error from passing.__cause__

    def _begin(self, call: Call, deadline: Deadline) -> httpx2.Response:
        request = self._http.build_request(**self.asked(call, deadline))
        response = self._http.send(request, stream=True)
        self.was_reached = True
        return response

    def _begin_stream(self, call: Call, deadline: Deadline) -> httpx2.Response:
        response = self._begin(call, deadline)
        if self.is_stream(response):
            return response
        with closing(response):
            self._result(call, response, deadline)
        raise SuperduperError(f"{self.url} answered a query, not as a Superduper server does")

    def _result(self, call: Call, response: httpx2.Response, deadline: Deadline) -> Any:
        parts = []
        for part in response.iter_bytes():
            parts.append(part)
            deadline.left(self.url)
        return self.read(call, response, b"".join(parts))

    def _persist(self, attempt: Callable[[], T], deadline: Deadline) -> T:
        """Attempt until it succeeds, fails for good, or there is no time left to try again."""
        pauses = Pauses(deadline)
        while True:
            try:
                return attempt()
            except Passing as passing:
                wait = pauses.after(passing, self.patience())
            time.sleep(wait)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
