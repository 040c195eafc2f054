"""The one core of all predictions: from a request's bytes to a model host and back to bytes.

Doors lead to it: the ordinary routes, a fast lane in the protocol class, a fast path before the
application. It knows nothing of them, holds no thread while a model works, and gives up what is
late or what nobody waits for any more.
"""

import asyncio
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
from bson import Binary
from bson.binary import VECTOR_SUBTYPE

from superduper import commands
from superduper.errors import NotReady, TimedOut
from superduper.handlers import predictions
from superduper.service import Service
from superduper.serving.batcher import Outcomes, Request
from superduper_server import bodies, v2_format, v2_tensors
from superduper_server.models import IMPUTATION_PATH, MODEL_VERSION_PATH, Place, Target
from superduper_server.rivals import Part, Shadows
from superduper_server.traces import Tracer

SWEEP_SECONDS = 0.25
SMALL_BYTES = 64 * 1024
"""Bodies up to here are read and written in the event loop's thread, larger ones elsewhere."""

LARGE = 1e18
MOST_INPUTS = 10_000
"""What is not checked as a command is must be what the command would take anyway."""

_VECTOR_HEAD = b"\x27\x00"

Headers = Mapping[str, str]
Answer = tuple[bytes, dict[str, str]]
Reply = Callable[[Outcomes | Exception], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A prediction that is ready to be run, and what becomes of its outcomes."""

    target: Target
    values: list[Any]
    seconds: float | None
    """How long its sender waits; None for as long as the server allows."""
    finish: Callable[[Outcomes], Answer]
    pinned: str | None = None
    """The version that the body asks for where the path names none: the target must be that."""
    part: Part | None = None
    """Its part in a trial of other versions, if there is one."""


def read(place: Place, target: Target, headers: Headers, query: str, body: bytes) -> Job:
    """The job that a request asks for; any thread may call it.

    Raises InvalidInput that says what is wrong with the request.
    """
    part = None
    if target.rivals is not None:
        part = target.rivals.share(target, body)
        target = part.target
    with bodies.refused_values():
        if place.model:
            job = _read_v2(place, target, headers, body)
        else:
            job = _read_v1(place, target, headers, query, body)
    return job if part is None else replace(job, part=part)


def _read_v1(place: Place, target: Target, headers: Headers, query: str, body: bytes) -> Job:
    command = commands.PredictImputation if place.template == IMPUTATION_PATH else commands.Predict
    placed = {"collection": place.collection, "name": place.name}
    if place.version is not None and place.template == MODEL_VERSION_PATH:
        placed["version"] = place.version
    pinned = None
    is_float32 = bool((target.component.details or {}).get("reads_float32"))
    inputs = _quick_inputs(headers, query, body) if is_float32 else None
    if inputs is None:
        sent = bodies.read_fields(headers, query, body)
        checked = bodies.check_fields(command, placed, sent)
        inputs, version = checked.inputs, getattr(checked, "version", None)
        pinned = str(version) if version is not None and place.version is None else None
        if is_float32:
            inputs = [_vector(value) if _is_floats(value) else value for value in inputs]
    as_bson = bodies.wants_bson(headers)

    def finish(outcomes: Outcomes) -> Answer:
        if not as_bson and (quick := _quick_answer(outcomes, target.version)) is not None:
            return quick, {"content-type": bodies.JSON}
        told = predictions.answer(target.component, target.version, outcomes)
        content, media_type = bodies.write_answer(told, as_bson=as_bson)
        return content, {"content-type": media_type}

    return Job(target, inputs, None, finish, pinned)


def _quick_inputs(headers: Headers, query: str, body: bytes) -> list[Any] | None:
    """The inputs of the most frequent form of body, nothing but rows of floats; else None."""
    if query or headers.get("content-type") != bodies.JSON or body.count(b'"') != 2:
        return None
    if bodies.has_too_many_values(body):
        return None
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    inputs = sent.get("inputs") if type(sent) is dict and len(sent) == 1 else None
    if type(inputs) is not list or len(inputs) > MOST_INPUTS:
        return None
    if not all(map(_is_floats, inputs)):
        return None
    # A whole number that is too long for one is a float here: the long way tells of it.
    is_plain = all(max(value) < LARGE and min(value) > -LARGE for value in inputs)
    return [_vector(value) for value in inputs] if is_plain else None


def _is_floats(value: Any) -> bool:
    return type(value) is list and set(map(type, value)) == {float}


def _vector(numbers: list[float]) -> Any:
    data = array("f", numbers)
    if sys.byteorder == "big":
        data.byteswap()
    return Binary(_VECTOR_HEAD + data.tobytes(), VECTOR_SUBTYPE)


def _quick_answer(outcomes: Outcomes, version: int | None) -> bytes | None:
    """The JSON of the most frequent form of answer, rows of float32; else None."""
    outputs: list[Any] = [each["value"] for each in outcomes if each.keys() == {"value"}]
    if not outputs or len(outputs) != len(outcomes) or not all(map(v2_tensors.is_float32, outputs)):
        return None
    if any(len(output) != len(outputs[0]) for output in outputs):
        return None
    data = b"".join([output[2:] for output in outputs])
    rows = np.frombuffer(data, "<f4").astype("<f8").reshape(len(outputs), -1)
    told = {"outputs": rows, "version": version}
    written = orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)
    return None if b"null" in written else written  # NaN has a form of its own


def _read_v2(place: Place, target: Target, headers: Headers, body: bytes) -> Job:
    question = v2_format.read(headers, body, target.signature)
    version = target.component.version

    def finish(outcomes: Outcomes) -> Answer:
        columns = v2_format.answer_columns(outcomes, target.signature.outputs)
        return v2_format.write(place.model, version, question, columns)

    return Job(target, question.values, question.timeout, finish)


class Ticket:
    """A job under way: whoever gave it may cancel it."""

    __slots__ = ("late_at", "reply", "request")

    def __init__(self, reply: Reply, late_at: float) -> None:
        self.reply = reply
        self.late_at = late_at
        self.request: Request | None = None

    def cancel(self) -> None:
        """Nobody waits any more."""
        if self.request is not None:
            self.request.cancel()


class Predictions:
    """Jobs under way; for the event loop's thread."""

    def __init__(
        self,
        service: Service,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        tracer: Tracer | None = None,
    ) -> None:
        self._hosts = service.context.hosts
        self._shadows = Shadows(service.context.hosts, service.context.tally, seconds)
        self._tracer = tracer
        self._seconds = seconds
        self._clock = clock
        self._under_way: set[Ticket] = set()
        self._inbox: deque[tuple[Ticket, Outcomes | Exception]] = deque()
        self._is_called = False
        self._sweeper: asyncio.TimerHandle | None = None
        self.stopping = False

    @property
    def count(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    def start(self, job: Job, owner: str, reply: Reply) -> Ticket:
        """Run a job; `reply` is called once, later, in this thread, with outcomes or an error.

        Raises TooManyRequests if too many wait for the model, NotReady while shutting down.
        """
        if self.stopping:
            raise NotReady("the server is shutting down")
        loop = asyncio.get_running_loop()
        now = self._clock()
        if job.part is not None:
            reply = self._on_trial(job.part, job.values, reply)
        ticket = Ticket(reply, now + min(job.seconds or self._seconds, self._seconds))

        def done(result: Outcomes | Exception) -> None:
            self._inbox.append((ticket, result))
            if not self._is_called:
                self._is_called = True
                loop.call_soon_threadsafe(self._deliver)

        if not job.values:
            self._under_way.add(ticket)
            done([])
            return ticket
        ticket.request = Request(job.values, ticket.late_at, done, owner)
        if self._tracer is not None:
            ticket.reply = _traced(self._tracer, job, ticket.request, reply)
        self._hosts.put(job.target.component, ticket.request)
        self._under_way.add(ticket)
        if self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep, loop)
        return ticket

    def _on_trial(self, part: Part, values: list[Any], reply: Reply) -> Reply:
        def answered(result: Outcomes | Exception) -> None:
            reply(result)
            self._shadows.heard(part, values, result)

        return answered

    async def run(self, job: Job, owner: str) -> Outcomes:
        """The outcomes of a job; it is cancelled with whoever waits for it."""
        future: asyncio.Future[Outcomes] = asyncio.get_running_loop().create_future()

        def reply(result: Outcomes | Exception) -> None:
            if future.done():
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        ticket = self.start(job, owner, reply)
        try:
            return await future
        finally:
            ticket.cancel()

    def _deliver(self) -> None:
        self._is_called = False
        while self._inbox:
            ticket, result = self._inbox.popleft()
            if ticket in self._under_way:
                self._under_way.remove(ticket)
                ticket.reply(result)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer what is late, though its model still works on it."""
        now = self._clock()
        for ticket in [ticket for ticket in self._under_way if ticket.late_at <= now]:
            self._under_way.remove(ticket)
            ticket.cancel()
            ticket.reply(TimedOut("the model did not answer in time"))
        again = bool(self._under_way)
        self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep, loop) if again else None


def _traced(tracer: Tracer, job: Job, request: Request, reply: Reply) -> Reply:
    where, model = tracer.here(), job.target.component.id

    def answered(result: Outcomes | Exception) -> None:
        tracer.note(where, model, request)
        reply(result)

    return answered
