"""The parent's side of a child process that runs user code: ask it, and survive what it does."""

import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from superduper.errors import (
    ArtifactRejected,
    ChildDied,
    InvalidInput,
    MissingExtra,
    NotReady,
    SuperduperError,
    TimedOut,
    TooLarge,
    error_of,
)
from superduper.jobs.channel import (
    BLOCK,
    MAX_BYTES,
    BrokenFrame,
    Channel,
    ChannelClosed,
    ChildError,
    Message,
    frame,
)
from superduper.jobs.descendants import count_descendants
from superduper.jobs.fork_server import UNKNOWN_EXIT
from superduper.jobs.launching import Launch
from superduper.jobs.limits import BOUNDARIES, MIB, Limits
from superduper.jobs.process import ProcessGroup
from superduper.jobs.queue import Cancelled

logger = logging.getLogger(__name__)

TURN_SECONDS = 0.2
STOP_SECONDS = 2.0
QUOTED_LINES = 24
QUOTED_CHARACTERS = 2000

# Errors that a child may raise in its parent as what they are; every other one is user code's.
_OWN_CODES = {kind.code for kind in (ArtifactRejected, InvalidInput, MissingExtra, TooLarge)}

Event = dict[str, Any]


class Child:
    """A process that runs user code behind a channel.

    A request that does not end with an answer (timeout, cancellation, an exception in `on_event`)
    ends the child. A dead child may be started again. Safe for several threads: requests queue up;
    `kill` ends the one in progress.
    """

    def __init__(
        self, entry: str, *, limits: Limits | None = None, name: str | None = None
    ) -> None:
        self.entry = entry
        self.limits = limits or Limits.of_settings()
        self.name = name or entry
        self.held: dict[str, bool] | None = None
        self.place: int | None = None
        """Where the last process was in its work when it ended, if it said so."""
        self._group: ProcessGroup | None = None
        self._channel: Channel | None = None
        self._deadline = math.inf
        self._timeout: float | None = None
        self._cancel: threading.Event | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> "Child":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether the process is there and has not ended."""
        group = self._group
        return group is not None and not group.exited()

    @property
    def pid(self) -> int | None:
        """The number of the process, None when there is none."""
        group = self._group
        return group.pid if group is not None else None

    def grant(self, folder: Path) -> None:
        """Let it change files in this folder too; to be called before it is started."""
        self.limits = replace(self.limits, writable=(*self.limits.writable, str(folder)))

    # Life ------------------------------------------------------------------------------------

    def start(self, preload: Sequence[str] = ()) -> None:
        """Start the process; does nothing while it lives. Does not wait until it is ready.

        `preload` names modules that it will need, which are imported once for all children. Raises
        NotReady if the system has no room for it.
        """
        with self._lock:
            if self.alive:
                return
            self.kill()
            try:
                self._group = ProcessGroup(Launch(self.entry, self.limits, preload))
            except OSError as error:
                raise NotReady(f"child {self.name!r} cannot be started: {error}") from error
            # No answer can be larger than the memory that it came from.
            limit = min(MAX_BYTES, self.limits.memory_mb * MIB)
            self._channel = Channel(self._group.socket, max_bytes=limit, wait=self._wait)
            self.held = None

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Close the channel, give the process a moment to end by itself, then end it."""
        with self._lock:
            if self._group is not None and not self._group.exited():
                self._group.hang_up()
                self._group.wait_for_exit(seconds)
            self.kill()

    def kill(self) -> None:
        """End the process and everything it started, at once."""
        group = self._group
        if group is not None:
            group.signal()  # before the lock: this is what ends a request in progress
        with self._lock:
            if self._group is not None:
                self._group.kill()
                self.place = self._group.place
            self._group = self._channel = None

    # Requests --------------------------------------------------------------------------------

    def request(
        self,
        message: Mapping[str, Any],
        timeout: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Message:
        """Send a message and return the answer; `on_event` gets the events that come before it.

        Raises ChildError (a UserCodeError) for an exception in the child, ChildDied when it ends,
        TimedOut and Cancelled after ending it.
        """
        parts = frame(message)  # what cannot be encoded does no harm to the child
        with self._lock:
            group, channel = self._group, self._channel
            if group is None or channel is None:
                raise NotReady(f"child {self.name!r} is not running: start it")

            def exchange() -> Message:
                channel.send_framed(parts)
                return self._receive(channel, on_event)

            return self._waiting(group, exchange, timeout, cancel)

    def _waiting(
        self,
        group: ProcessGroup,
        exchange: Callable[[], Message],
        timeout: float | None,
        cancel: threading.Event | None = None,
    ) -> Message:
        """What an exchange answers; the child is ended if it does not end well."""
        self._timeout, self._cancel = timeout, cancel
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        try:
            answer = exchange()
        except (ChannelClosed, BrokenFrame) as error:
            raise self._died(group, error) from error
        except BaseException:
            self.kill()
            raise
        return self._told(group, answer)

    def _told(self, group: ProcessGroup, answer: Message) -> Message:
        output = group.tail()
        group.forget_output()
        if "error" in answer:
            raise self._error_of(answer["error"], output)
        told = cast(Message, answer["ok"])
        return {**told, BLOCK: answer[BLOCK]} if BLOCK in answer else told

    # Requests that hold up nobody: from `begin` to the answer there must be no other ------------

    def begin(self, message: Mapping[str, Any]) -> bool:
        """Begin to send a message, and wait for nothing.

        False if that cannot be: `request` tells why.
        """
        channel = self._channel
        if channel is None:
            return False
        try:
            channel.begin(frame(message))
        except (ChannelClosed, OSError, InvalidInput, TooLarge):
            return False  # it has ended, or been ended, or there is no such message
        return True

    def push(self) -> bool:
        """Send more of what was begun; whether that was all, or nobody is there to take it."""
        channel = self._channel
        try:
            return channel is None or channel.push()
        except (ChannelClosed, OSError):
            return True

    @property
    def bell(self) -> socket.socket | None:
        """What has something to read when there is something to be told; not to be read from."""
        group = self._group
        return None if group is None else group.socket

    def answer_now(self) -> Message | None:
        """The answer to what was begun, if it is there.

        Raises ChildError as `request` does. Whatever else there is to be told, `answer` tells.
        """
        group, channel = self._group, self._channel
        if group is None or channel is None:
            return None
        try:
            answer = channel.receive_now()
        except (ChannelClosed, BrokenFrame, OSError):
            return None
        return None if answer is None else self._told(group, answer)

    def answer(self, timeout: float | None = None) -> Message:
        """The answer to what was begun; raises what `request` raises."""
        with self._lock:
            group, channel = self._group, self._channel
            if group is None or channel is None:
                raise NotReady(f"child {self.name!r} is not running: start it")

            def exchange() -> Message:
                channel.finish()
                return self._receive(channel, None)

            return self._waiting(group, exchange, timeout)

    def _receive(self, channel: Channel, on_event: Callable[[Event], None] | None) -> Message:
        while (answer := channel.receive()) is not None:
            match answer:
                case {"event": dict(event)}:
                    if on_event is not None:
                        on_event(event)
                case {"started": dict(held)}:
                    self.held = held
                    _tell_once(tuple(text for name, text in BOUNDARIES.items() if not held[name]))
                case {"ok": dict()} | {"error": dict()}:
                    return answer
                case _:
                    raise BrokenFrame(f"a message with the keys {sorted(answer)[:5]}")
        raise ChannelClosed("it closed its channel")

    def _wait(self, events: int) -> None:
        group = self._group
        if group is None or group.returncode is not None:
            raise ChannelClosed("it was ended")
        while True:
            left = self._deadline - time.monotonic()
            if self._cancel is not None and self._cancel.is_set():
                raise Cancelled(f"the request to child {self.name!r} was cancelled")
            if left <= 0:
                raise TimedOut(
                    f"child {self.name!r} did not answer within {self._timeout:g} s and was ended"
                )
            if group.wait(events, min(TURN_SECONDS, left)):
                return
            if count_descendants(group.pid, self.limits.processes) > self.limits.processes:
                raise ChildDied(
                    f"child {self.name!r} started more than {self.limits.processes} processes"
                    " and was ended"
                )
            # What it started may hold its end of the socket open after its own death.
            if group.exited() and not group.wait(events, 0):
                raise ChannelClosed("it ended")

    # Errors ----------------------------------------------------------------------------------

    def _died(self, group: ProcessGroup, cause: Exception) -> ChildDied:
        ended = group.wait_for_exit(0 if isinstance(cause, BrokenFrame) else STOP_SECONDS)
        code = group.kill()
        self.place = group.place
        self._group = self._channel = None
        if isinstance(cause, BrokenFrame):
            how = f"sent something that is not a message ({cause}) and was ended"
        elif not ended:
            how = "closed its channel and was ended"
        elif code == UNKNOWN_EXIT:
            how = "ended after the process that it was forked from: how is not known"
        elif code >= 0:
            how = f"ended with exit code {code}"
        else:
            how = f"was ended by {_signal_name(code)}"
            if code == -signal.SIGKILL:
                how += f" (out of memory? It may use {self.limits.memory_mb} MiB)"
        return ChildDied(f"child {self.name!r} {how}{_quote(group.tail())}")

    def _error_of(self, error: Mapping[str, Any], output: str) -> SuperduperError:
        code, kind, text, trace = (
            str(error.get(key, "")) for key in ("code", "type", "message", "traceback")
        )
        if code in _OWN_CODES:
            return error_of(code, text)
        message = f"{self.name}: {kind}: {text}{_quote(output)}"
        return ChildError(message, type=kind, text=text, traceback=trace)


@cache
def _tell_once(missing: tuple[str, ...]) -> None:
    # In the logs of servers and workers; whoever runs a script of his own need not read it.
    if missing:
        logger.info(
            "user code is not held by the system to: %s (superduper doctor tells more)",
            ", ".join(missing),
        )


def _signal_name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"


def _quote(output: str) -> str:
    lines = output.splitlines()[-QUOTED_LINES:]
    quoted = "\n".join(lines)[-QUOTED_CHARACTERS:]
    return f"; it printed last:\n{quoted}" if quoted else ""
