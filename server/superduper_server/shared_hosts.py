"""Model hosts that another process of the server has: how an HTTP process asks them.

What is asked in one turn of the loop goes out in one message, and there the requests of all
processes share batches.
"""

import asyncio
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from superduper.errors import NotReady, SuperduperError, TooManyRequests
from superduper.jobs.channel import Message
from superduper.serving.batches import Outcomes, Request
from superduper.serving.figures import ModelState
from superduper.serving.loading import Payload
from superduper.serving.model_hosts import Component, ModelHosts
from superduper.store.component import Component as Registered
from superduper_server.link import Link
from superduper_server.parcels import (
    Sent,
    pack_requests,
    pack_values,
    unpack_answers,
    unpack_outcomes,
)

MOST_WAITING = 4096
MOST_UNSENT_BYTES = 256 << 20
GONE = "the process that has the models is gone: try again in a moment"


class SharedHosts(ModelHosts):
    """The models of another process. Only `put` may be called by the loop's thread."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Request] = {}
        self._outbox: list[Sent] = []
        self._introduced: dict[str, bytes] = {}

    # In the loop's thread --------------------------------------------------------------------

    def attach(self, link: Link) -> None:
        """From now on the models are asked through this link."""
        self._link, self._loop = link, asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def hear(self, message: Message) -> None:
        """Answers have come."""
        for parcel in message["answers"]:
            for number, run_at, result in unpack_answers(parcel):
                request = self._waiting.pop(number, None)
                if request is not None:
                    request.run_at = run_at
                    request.done(result)

    def detach(self) -> None:
        """The link is gone: nothing that was asked will be answered."""
        self._link = None
        waiting, self._waiting = self._waiting, {}
        for request in waiting.values():
            request.done(NotReady(GONE))

    def _post(self, component: Component, request: Request) -> None:
        if self._link is None:
            raise NotReady(GONE)
        if len(self._waiting) >= MOST_WAITING or self._link.unsent_bytes > MOST_UNSENT_BYTES:
            raise TooManyRequests("too many predictions are waiting: try again in a moment")
        self._introduce(self._link, component)
        number = next(self._numbers)
        request.put_at = time.monotonic()
        request.on_cancel = partial(self._cancel, number)
        self._waiting[number] = request
        if not self._outbox:
            # Not at once: more may come in this turn of the loop.
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(Sent(number, component.id, request))

    def _post_late(self, component: Component, request: Request) -> None:
        try:
            self._post(component, request)
        except SuperduperError as error:
            request.done(error)

    def _introduce(self, link: Link, component: Component) -> None:
        """Tell of a version once: what is asked names only its id."""
        registered = cast(Registered, component)
        if self._introduced.get(component.id) != registered.signature:
            link.send({"component": registered.to_document()})
            self._introduced[component.id] = registered.signature

    def _flush(self) -> None:
        sent, self._outbox = self._outbox, []
        wanted = [each for each in sent if not each.request.cancelled]
        try:
            self._send(wanted)
        except SuperduperError:  # one of them cannot be sent
            for each in wanted:
                self._send_alone(each)

    def _send(self, sent: list[Sent]) -> None:
        if self._link is not None and sent:
            self._link.send({"requests": pack_requests(sent)})

    def _send_alone(self, sent: Sent) -> None:
        try:
            self._send([sent])
        except SuperduperError as error:
            del self._waiting[sent.number]
            sent.request.done(error)

    def _cancel(self, number: int) -> None:
        """Nobody waits any more for what was asked."""
        if threading.get_ident() != self._thread:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._cancel, number)
        elif self._waiting.pop(number, None) is not None and self._link is not None:
            self._link.send({"cancelled": number})

    # In any thread ---------------------------------------------------------------------------

    def put(self, component: Component, request: Request) -> None:
        """Have a request answered through its `done`, which the loop's thread calls."""
        if threading.get_ident() == self._thread:
            self._post(component, request)
        elif self._loop is None:
            raise NotReady(GONE)
        else:
            self._loop.call_soon_threadsafe(self._post_late, component, request)

    def predict_alone(
        self, component: Component, values: Sequence[Any], timeout: float, *, plain: bool = False
    ) -> Outcomes:
        """The outcomes of values that share no batch."""
        fields = {"timeout": timeout, "plain": plain, **pack_values(values)}
        return unpack_outcomes(self._ask_of(component, "predict", fields))

    def ask(self, component: Component, message: Message, timeout: float) -> Message:
        """A model process's answer to something else than a prediction."""
        found: Message = self._ask_of(component, "ask", {"timeout": timeout, "message": message})
        return found

    def try_out(
        self,
        payload: Payload,
        kind: str,
        sample: Any = None,
        has_sample: bool = False,
        wish: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Load a component in a fresh child of the other process, and run it on its sample."""
        fields = {"payload": payload, "kind": kind, "sample": sample, "has_sample": has_sample}
        details: dict[str, Any] = self.call("try_out", **fields, wish=wish)
        return details

    def states(self) -> list[ModelState]:
        """The models that are loaded, or about to be."""
        return [ModelState.of(state) for state in self.call("states")]

    def is_loaded(self, component_id: str) -> bool:
        """Whether a model's process is there and has it loaded."""
        return bool(self.call("is_loaded", id=component_id))

    def unload(self, component_id: str) -> None:
        """Let a model go once what it was asked has been answered."""
        self.call("unload", id=component_id)

    def reload(self, component: Component) -> None:
        """Load a model anew in the form that is wished for."""
        self._ask_of(component, "reload", {})

    def follow(self, component: Component) -> None:
        """Begin to reload a model, if another form of it is wished for since."""
        self._ask_of(component, "follow", {})

    def close(self) -> None:
        """Nothing: the models belong to the other process, and others may need them."""

    def call(self, name: str, **fields: Any) -> Any:
        """What the other process answers to a call. Blocks: not in the loop's thread."""
        return self._call(None, name, fields)

    def _ask_of(self, component: Component, name: str, fields: Message) -> Any:
        return self._call(component, name, {"component": component.id, **fields})

    def _call(self, component: Component | None, name: str, fields: Message) -> Any:
        loop = self._loop
        if loop is None or threading.get_ident() == self._thread:
            raise NotReady(GONE if loop is None else "a call that blocks, in the loop's thread")

        async def called() -> Any:
            if self._link is None:
                raise NotReady(GONE)
            if component is not None:
                self._introduce(self._link, component)
            return await self._link.call(name, **fields)

        return asyncio.run_coroutine_threadsafe(called(), loop).result()
