"""The one core of all predictions: from a request's bytes to a model host and back to bytes.

Doors lead to it: the ordinary routes, a fast lane in the protocol class, a fast path before the
application. It knows nothing of them, holds no thread while a model works, and gives up what is
late or what nobody waits for any more.
"""

import asyncio
import itertools
import struct
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import orjson
from bson import Binary
from bson.binary import VECTOR_SUBTYPE

from superduper import commands
from superduper.commands.predictions import MOST_INPUTS
from superduper.errors import NotReady, TimedOut
from superduper.handlers import predictions
from superduper.service import Service
from superduper.serving.batches import Outcomes, Request
from superduper.serving.blocks import BYTES_PER_FLOAT, HEAD, Block, BlockOutcomes, floats, of_stored
from superduper_server import bodies, v2_format, v2_tensors
from superduper_server.models import IMPUTATION_PATH, MODEL_VERSION_PATH, Place, Target
from superduper_server.rivals import Part, Shadows
from superduper_server.traces import Tracer

SWEEP_SECONDS = 0.25
SMALL_BYTES = 64 * 1024
"""Bodies up to here are read and written in the event loop's thread, larger ones elsewhere."""

JSON_HEADERS = {"content-type": bodies.JSON}
FEW_FLOATS = 64
"""Up to here one row is written sooner by Python than by numpy, which takes longer to begin."""
Headers = Mapping[str, str]
Answer = tuple[bytes, dict[str, str]]
Reply = Callable[[Outcomes | Exception], None]


@dataclass(slots=True)
class Job:
    """A prediction that is ready to be run, and what becomes of its outcomes."""

    target: Target
    values: Sequence[Any]
    finish: Callable[[Outcomes], Answer]
    seconds: float | None = None
    """How long its sender waits; None for as long as the server allows."""
    pinned: str | None = None
    """The version that the body asks for where the path names none: the target must be that."""
    part: Part | None = None
    """Its part in a trial of other versions, if there is one."""


def read(place: Place, target: Target, headers: Headers, query: str, body: bytes) -> Job:
    """The job that a request asks for; any thread may call it.

    Raises InvalidInput that says what is wrong with the request.
    """
    if target.rivals is not None:
        part = target.rivals.share(target, body)
        return replace(_read(place, part.target, headers, query, body), part=part)
    return _read(place, target, headers, query, body)


def _read(place: Place, target: Target, headers: Headers, query: str, body: bytes) -> Job:
    if not place.model and target.reads_float32:
        vectors = _quick_inputs(headers, query, body)
        if vectors is not None:
            return Job(target, vectors, _writing(target, as_bson=bodies.wants_bson(headers)))
    with bodies.refused_values():
        if place.model:
            return _read_v2(place, target, headers, body)
        return _read_v1(place, target, headers, query, body)


def _read_v1(place: Place, target: Target, headers: Headers, query: str, body: bytes) -> Job:
    command = commands.PredictImputation if place.template == IMPUTATION_PATH else commands.Predict
    placed = {"collection": place.collection, "name": place.name}
    if place.version is not None and place.template == MODEL_VERSION_PATH:
        placed["version"] = place.version
    sent = bodies.read_fields(headers, query, body)
    checked = bodies.check_fields(command, placed, sent)
    inputs, version = checked.inputs, getattr(checked, "version", None)
    pinned = str(version) if version is not None and place.version is None else None
    if target.reads_float32:
        inputs = [_vector(value) if _is_floats(value) else value for value in inputs]
    writing = _writing(target, as_bson=bodies.wants_bson(headers))
    return Job(target, of_stored(inputs), writing, pinned=pinned)


def _writing(target: Target, *, as_bson: bool) -> Callable[[Outcomes], Answer]:
    return partial(_write_bson if as_bson else _write_json, target)


def _write_json(target: Target, outcomes: Outcomes) -> Answer:
    if (quick := _quick_answer(outcomes, target.version)) is not None:
        return quick, JSON_HEADERS
    told = predictions.answer(target.component, target.version, outcomes)
    return bodies.write_answer(told, as_bson=False)[0], JSON_HEADERS


def _write_bson(target: Target, outcomes: Outcomes) -> Answer:
    told = predictions.answer(target.component, target.version, outcomes)
    content, media_type = bodies.write_answer(told, as_bson=True)
    return content, {"content-type": media_type}


def _quick_inputs(headers: Headers, query: str, body: bytes) -> Block | None:
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
    # What is not checked as a command is must be what the command would take anyway.
    if type(inputs) is not list or not 0 < len(inputs) <= MOST_INPUTS:
        return None
    first = inputs[0]
    width = len(first) if type(first) is list else 0
    # A float has one point, and nothing else has one: so all that is in the rows are floats.
    if not width or body.count(b".") != width * len(inputs):
        return None
    try:
        data = array("f", first)
        for row in inputs[1:]:
            if type(row) is not list or len(row) != width:
                return None
            data.extend(row)
    except TypeError:  # lists in the rows
        return None
    if sys.byteorder == "big":
        data.byteswap()
    return Block(floats(width), data.tobytes())


def _is_floats(value: Any) -> bool:
    return type(value) is list and set(map(type, value)) == {float}


def _vector(numbers: list[float]) -> Any:
    data = array("f", numbers)
    if sys.byteorder == "big":
        data.byteswap()
    return Binary(HEAD + data.tobytes(), VECTOR_SUBTYPE)


def _quick_answer(outcomes: Outcomes, version: int | None) -> bytes | None:
    """The JSON of the most frequent form of answer, rows of float32; else None."""
    found = outcomes if type(outcomes) is BlockOutcomes else _in_block(outcomes)
    if not found or not found.block.layout.is_floats:
        return None
    texts = found.block.texts
    if texts is None:
        texts = found.block.texts = _texts(found.block)
    rows = b"],[".join(texts[found.start : found.stop])
    if b"null" in rows:  # NaN has a form of its own
        return None
    return b'{"outputs":[[%b]],"version":%b}' % (rows, orjson.dumps(version))


def _in_block(outcomes: Outcomes) -> BlockOutcomes | None:
    values: list[Any] = [each["value"] for each in outcomes if each.keys() == {"value"}]
    if not values or len(values) != len(outcomes) or not all(map(v2_tensors.is_float32, values)):
        return None
    width, rest = divmod(len(values[0]) - len(HEAD), BYTES_PER_FLOAT)
    if rest or not width or any(len(value) != len(values[0]) for value in values):
        return None
    data = b"".join([value[len(HEAD) :] for value in values])
    return BlockOutcomes(Block(floats(width), data))


def _texts(block: Block) -> list[bytes]:
    """The JSON of each vector, without its brackets."""
    [width] = block.layout.shape
    if len(block) == 1 and width <= FEW_FLOATS:
        return [orjson.dumps(struct.unpack(f"<{width}f", block.data))[1:-1]]
    rows = np.frombuffer(block.data, "<f4").astype("<f8").reshape(len(block), -1)
    return orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],[")


def _read_v2(place: Place, target: Target, headers: Headers, body: bytes) -> Job:
    question = v2_format.read(headers, body, target.signature)
    version = target.component.version

    def finish(outcomes: Outcomes) -> Answer:
        columns = v2_format.answer_columns(outcomes, target.signature.outputs)
        return v2_format.write(place.model, version, question, columns)

    return Job(target, question.values, finish, question.timeout)


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
        # By number, which is all that a request knows of its ticket: in a circle of references they
        # would stay until a collection, whose pauses of 20 ms were what the slowest answers took.
        self._under_way: dict[int, Ticket] = {}
        self._numbers = itertools.count()
        self._inbox: deque[tuple[int, Outcomes | Exception]] = deque()
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
        loop, now, number = asyncio.get_running_loop(), self._clock(), next(self._numbers)
        if job.part is not None:
            reply = self._on_trial(job.part, job.values, reply)
        ticket = Ticket(reply, now + min(job.seconds or self._seconds, self._seconds))
        done = partial(self._done, loop, threading.get_ident(), number)
        if not job.values:
            self._under_way[number] = ticket
            loop.call_soon(done, [])
            return ticket
        ticket.request = Request(job.values, ticket.late_at, done, owner)
        if self._tracer is not None:
            ticket.reply = _traced(self._tracer, job, ticket.request, reply)
        self._hosts.put(job.target.component, ticket.request)
        self._under_way[number] = ticket
        if self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep, loop)
        return ticket

    def _done(
        self,
        loop: asyncio.AbstractEventLoop,
        thread: int,
        number: int,
        result: Outcomes | Exception,
    ) -> None:
        """A request has its outcomes; in any thread."""
        if threading.get_ident() == thread:
            self._answer(number, result)
            return
        self._inbox.append((number, result))
        if not self._is_called:
            self._is_called = True
            loop.call_soon_threadsafe(self._deliver)

    def _on_trial(self, part: Part, values: Sequence[Any], reply: Reply) -> Reply:
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
            self._answer(*self._inbox.popleft())

    def _answer(self, number: int, result: Outcomes | Exception) -> None:
        ticket = self._under_way.pop(number, None)
        if ticket is not None:
            ticket.reply(result)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer what is late, though its model still works on it."""
        now = self._clock()
        for number in [key for key, each in self._under_way.items() if each.late_at <= now]:
            ticket = self._under_way.pop(number)
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
