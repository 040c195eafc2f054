"""One HTTP process as the hub sees it: started, asked for predictions by, handed connections."""

import asyncio
import json
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from superduper.errors import NotFound, SuperduperError
from superduper.jobs.channel import Message
from superduper.serving.batches import Outcomes, Request
from superduper.serving.hosts import Hosts
from superduper.store.component import Component
from superduper_server.link import Link
from superduper_server.open_answers import OpenAnswers
from superduper_server.parcels import (
    Answered,
    pack_answers,
    pack_outcomes,
    unpack_requests,
    unpack_values,
)
from superduper_server.pool import Pool

PROGRAM = (sys.executable, "-m", "superduper_server.http_process")
CALL_SECONDS = 900.0
"""Longer than anything that is asked may take: each has a limit of its own."""

Asked = Callable[["Member", str, Message], Awaitable[Any]]


class Member:
    """An HTTP process; for the event loop's thread."""

    def __init__(self, index: int, hosts: Hosts, pool: Pool, asked: Asked) -> None:
        """`asked` answers what is no matter of models."""
        self.index = index
        self.is_ready = self.was_ready = False
        self.handed = 0
        self.figures: list[Message] = []
        self._hosts = hosts
        self._pool = pool
        self._asked = asked
        self._thread = threading.get_ident()
        self._loop = asyncio.get_running_loop()
        self._components: dict[str, Component] = {}
        self._requests: dict[int, Request] = {}
        self._outbox: list[Answered] = []
        self._open = OpenAnswers(hosts)
        self._process: asyncio.subprocess.Process | None = None
        self._door: socket.socket | None = None
        self._link: Link | None = None

    # Life ------------------------------------------------------------------------------------

    async def start(self, told: Mapping[str, Any], ledger: int) -> None:
        """Start the process, and tell it what to serve; it calls `ready` when it can answer."""
        link, far_link = socket.socketpair()
        self._door, far_door = socket.socketpair()
        with far_link, far_door:
            files = {"link": far_link.fileno(), "door": far_door.fileno(), "ledger": ledger}
            self._process = await asyncio.create_subprocess_exec(
                *PROGRAM,
                stdin=asyncio.subprocess.PIPE,
                pass_fds=tuple(files.values()),
                start_new_session=True,  # who presses Ctrl-C means the hub, which tells them
            )
        self._door.setblocking(False)
        self._link = await Link.over(link, self._answer, self._hear, self._lose)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**told, **files, "index": self.index}).encode())
        self._process.stdin.close()

    async def ended(self) -> int:
        """The process's exit code, negative for a signal, once it has ended."""
        assert self._process is not None
        code = await self._process.wait()
        if self._link is not None:
            self._link.close()
        if self._door is not None:
            self._door.close()
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send one to the process, if it lives."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def hand(self, connection: socket.socket) -> bool:
        """Give it an accepted connection; False if it cannot take one now."""
        assert self._door is not None
        try:
            socket.send_fds(self._door, [b"."], [connection.fileno()])
        except OSError:  # it has ended, or does not keep up
            return False
        self.handed += 1
        return True

    async def call(self, name: str, seconds: float, **fields: Any) -> Any:
        """What it answers; raises as `Link.call` does."""
        assert self._link is not None
        return await self._link.call(name, seconds, **fields)

    def _lose(self) -> None:
        """It has ended: nobody waits for its requests."""
        self.is_ready = False
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.cancel()
        self._loop.run_in_executor(None, self._open.close)

    # Predictions -----------------------------------------------------------------------------

    def _hear(self, message: Message) -> None:
        if "requests" in message:
            for parcel in message["requests"]:
                self._put_all(parcel)
        elif "component" in message:
            component = Component.of(message["component"])
            self._components[component.id] = component
        elif (request := self._requests.pop(message["cancelled"], None)) is not None:
            request.cancel()

    def _put_all(self, parcel: Message) -> None:
        component = self._components[parcel["component"]]
        for number, values, deadline, owner in unpack_requests(parcel):
            request = Request(values, deadline, self._done(number), owner)
            self._requests[number] = request
            try:
                self._hosts.put(component, request)
            except SuperduperError as error:
                request.done(error)

    def _done(self, number: int) -> Callable[[Outcomes | Exception], None]:
        def done(result: Outcomes | Exception) -> None:
            if threading.get_ident() == self._thread:
                self._note(number, result)
            else:
                self._loop.call_soon_threadsafe(self._note, number, result)

        return done

    def _note(self, number: int, result: Outcomes | Exception) -> None:
        request = self._requests.pop(number, None)
        if request is None:
            return  # nobody waits any more
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(Answered(number, request.run_at, result))

    def _flush(self) -> None:
        answers, self._outbox = self._outbox, []
        try:
            self._send(answers)
        except SuperduperError:  # one of them cannot be sent
            for each in answers:
                self._send_alone(each)

    def _send(self, answers: list[Answered]) -> None:
        if self._link is not None:
            self._link.send({"answers": pack_answers(answers)})

    def _send_alone(self, answer: Answered) -> None:
        try:
            self._send([answer])
        except SuperduperError as error:
            self._send([Answered(answer.number, answer.run_at, error)])

    # Calls -----------------------------------------------------------------------------------

    async def _answer(self, name: str, fields: Message) -> Any:
        handlers: dict[str, Callable[[Message], Any]] = {
            "predict": self._predict,
            "ask": self._ask,
            "try_out": lambda fields: self._hosts.try_out(**fields),
            "states": lambda fields: [state.to_document() for state in self._hosts.states()],
            "is_loaded": lambda fields: self._hosts.is_loaded(fields["id"]),
            "reload": lambda fields: self._hosts.reload(self._component(fields)),
            "follow": lambda fields: self._hosts.follow(self._component(fields)),
            "unload": lambda fields: self._hosts.unload(fields["id"]),
        }
        handler = handlers.get(name)
        if handler is None:
            return await self._asked(self, name, fields)
        return await self._pool.run(lambda: handler(fields), seconds=CALL_SECONDS)

    def _predict(self, fields: Message) -> Message:
        component = self._component(fields)
        outcomes = self._hosts.predict_alone(
            component, unpack_values(fields), fields["timeout"], plain=fields["plain"]
        )
        return pack_outcomes(outcomes)

    def _ask(self, fields: Message) -> Message:
        return self._open.ask(self._component(fields), fields["message"], fields["timeout"])

    def _component(self, fields: Message) -> Component:
        try:
            return self._components[fields["component"]]
        except KeyError as error:
            raise NotFound(f"{fields['component']} was not told of") from error
