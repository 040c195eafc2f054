"""A model host as its parent sees it: a child process that holds one model and answers predictions.

The child is started when it is first needed. A child that died is started again at the next
request, after a pause that grows; one that dies again and again is given up for a while. After the
first death there is a spare one (`spare.py`).
"""

import logging
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from bson import Binary

from superduper.errors import ChildDied, NotReady, SuperduperError, TimedOut
from superduper.serving.batches import Outcomes
from superduper.serving.blocks import Block, BlockOutcomes, pack, unpack
from superduper.serving.figures import Figures
from superduper.serving.giving_way import giving_way
from superduper.serving.loading import Child, Launch, Payload, choose_form, load
from superduper.serving.spare import Spare

logger = logging.getLogger(__name__)

Message = dict[str, Any]

FRAME_VALUES = 256
FRAME_BYTES = 16 << 20
LOOP_DEATHS = 5
LOOP_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.25


class Wishes(Protocol):
    """Which form a model is wished to have; `superduper.store.forms.Wishes` is one."""

    def get(self) -> Mapping[str, Any] | None: ...

    @property
    def set_at(self) -> int | None: ...

    def report(self, wish: Mapping[str, Any], report: Mapping[str, Any]) -> None: ...


class _Ready(NamedTuple):
    """A child that has loaded the model, what is known of it, and `wished_at`."""

    child: Child
    details: dict[str, Any]
    wished_at: int | None


class ModelHost:
    """One model in one child process. Safe for several threads: one request runs at a time.

    `payload` is what `unsealing.load` wants, or a function that fetches it, so that nobody has to
    keep weights in memory for a restart that may never come.
    """

    def __init__(
        self,
        payload: Payload | Callable[[], Payload],
        name: str,
        launch: Launch,
        clock: Callable[[], float] = time.monotonic,
        figures: Figures | None = None,
        wishes: Wishes | None = None,
        has_loaded: Callable[[], None] | None = None,
    ) -> None:
        """`has_loaded` is told each time that a process has loaded the model."""
        self.name = name
        self._wishes = wishes
        self.wished_at: int | None = None
        """When the form that it has was wished for; None for the plain form."""
        self._figures = figures or Figures()
        self.details: dict[str, Any] = {}
        self._payload = payload
        self._launch = launch
        self._child = launch(f"model {name}")
        self._spare = Spare(name, self._load, lambda ready: ready.child.kill())
        self._has_loaded = has_loaded
        self._loaded = False
        self._begun = 0
        self._setbacks = _Setbacks(name, clock, self._figures)
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def predict(
        self, values: Sequence[Any], timeout: float | None = None, *, plain: bool = False
    ) -> Outcomes:
        """An outcome for each stored value, in order; no values only make sure that it runs.

        `timeout` is for the model's own work on one frame (256 values or 16 MiB); starting and
        loading do not count. `plain` has the plain form answer,
        whichever serves. Raises ChildDied or TimedOut for the request that ended the child
        (with the `position` of the value whose own code ran then, if there was one),
        NotReady if it is closed or dies too often, and what loading raises.
        """
        parts: list[Outcomes] = []
        for frame in frames(values):
            with self._lock:
                try:
                    parts.append(self._ask(frame, timeout, plain))
                except (ChildDied, TimedOut) as error:
                    if error.position is not None:
                        error.position += sum(map(len, parts))
                    raise
        return parts[0] if len(parts) == 1 else [each for part in parts for each in part]

    # Without waiting: after `begin` comes `answer_now` until it answers, or `answer` ------------

    def begin(self, values: Sequence[Any]) -> bool:
        """Have one frame of values predicted by a child that is there and has nothing to do.

        False if there is none, or they take more than a frame: then `predict` them.
        """
        if not self._loaded or self.closed or not self._lock.acquire(blocking=False):
            return False
        is_begun = False
        try:
            parts = list(frames(values))
            self._begun = len(parts[0])
            is_begun = len(parts) == 1 and self._child.begin(_message(parts[0]))
        finally:
            if not is_begun:
                self._lock.release()
        return is_begun

    def push(self) -> bool:
        """Send more of what was begun; False if there is more left, for when the bell has room."""
        return self._child.push()

    @property
    def bell(self) -> socket.socket | None:
        """What has something to read when `answer_now` may have something; not to be read from."""
        return self._child.bell

    def answer_now(self) -> Outcomes | None:
        """The outcomes of what was begun, if they are there; raises what the model's code raises.

        None if they are not, or something has gone wrong of which `answer` will tell.
        """
        try:
            answer = self._child.answer_now()
        except BaseException:
            self._lock.release()
            raise
        if answer is None:
            return None
        self._lock.release()
        self._setbacks.clear()
        return self._outcomes(answer)

    def answer(self, timeout: float | None = None) -> Outcomes:
        """The outcomes of what was begun; may block, and raises what `predict` raises."""
        try:
            return self._outcomes(self._asked(lambda: self._child.answer(timeout), self._begun))
        finally:
            self._lock.release()

    def ask(self, message: Message, timeout: float) -> Message:
        """The child's answer to one of the operations of `hosted.Hosted`, but `predict`.

        Raises what `predict` raises, and InvalidInput or UserCodeError as the child does.
        """
        with self._lock:
            return self._exchange(message, timeout)

    @property
    def is_loaded(self) -> bool:
        """Whether the child lives and has loaded the model."""
        return self._loaded and self._child.alive

    @property
    def memory_mb(self) -> int:
        """What the child took once it had loaded the model; 0 while it has not.

        Twice as much while there is a spare one.
        """
        taken = int(self.details.get("memory_mb", 0)) if self.is_loaded else 0
        return 2 * taken if self._spare.is_ready else taken

    @property
    def trouble(self) -> str:
        """Why it is given up for a while; empty if it is not."""
        return self._setbacks.trouble

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed.is_set()

    def close(self, *, finish: bool = False) -> None:
        """End the child, with `finish` after the frame in progress; requests then get NotReady."""
        if finish:
            with self._lock:
                self._closed.set()
        self._closed.set()
        self._child.kill()
        self._spare.drop()

    def _ask(self, values: Sequence[Any], timeout: float | None, plain: bool) -> Outcomes:
        message = {**_message(values), "plain": plain}
        return self._outcomes(self._exchange(message, timeout, len(values)))

    def _exchange(self, message: Message, timeout: float | None, count: int = 0) -> Message:
        self._make_ready()
        return self._asked(lambda: self._child.request(message, timeout), count)

    def _asked(self, ask: Callable[[], Message], count: int) -> Message:
        """The answer about so many values."""
        began = time.monotonic()
        try:
            answer = ask()
        except (ChildDied, TimedOut) as error:
            self._figures.lost += time.monotonic() - began
            position = self._child.place
            if position is not None and position < count:
                error.position = position
            self._check_open()
            self._setbacks.add(error)
            raise
        self._setbacks.clear()
        return answer

    def _outcomes(self, answer: Message) -> Outcomes:
        for stage, seconds in answer["seconds"].items():
            self._figures.stages[stage].add(seconds)
        self._figures.left_to_plain += answer.get("left_to_plain", 0)
        if (block := unpack(answer)) is not None:
            return BlockOutcomes(block)
        outcomes: list[dict[str, Any]] = answer["outcomes"]
        return outcomes

    def _make_ready(self) -> None:
        if self._child.alive and self._loaded:
            return
        self._closed.wait(self._setbacks.pause())
        self._check_open()
        died, self._loaded = self._loaded, False
        try:
            ready = self._spare.take() or self._load(self._child)
        except SuperduperError as error:
            self._check_open()
            self._setbacks.add(error)
            raise
        self._child, self.details, self.wished_at = ready
        self._loaded = True
        if self.closed:  # `close` may have come before there was anything to end
            self._child.kill()
        elif died:
            self._spare.prepare()
            if self.closed:
                self._spare.drop()
        if self._has_loaded is not None:
            self._has_loaded()

    def _load(self, child: Child | None = None) -> "_Ready":
        """Have a child, or a new one, load the model and choose its form."""
        child = child or self._launch(f"model {self.name}")
        with giving_way:
            payload = self._payload() if callable(self._payload) else self._payload
            wish = self._wishes.get() if self._wishes is not None else None
            try:
                details = load(child, payload, "model", self.name)
                if wish is not None:
                    details = self._with_form(child, details, payload, wish)
            except SuperduperError:
                child.kill()
                raise
        return _Ready(child, details, None if wish is None else wish["set_at"])

    def _with_form(
        self, child: Child, details: dict[str, Any], payload: Payload, wish: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Have the child choose its form; one that ends it is not tried again before it is wished.

        Whatever becomes of it, the model is loaded then.
        """
        assert self._wishes is not None
        found = choose_form(child, wish)
        if not child.alive:
            details = load(child, payload, "model", self.name)
        self._wishes.report(wish, found["form"])
        return {**details, **found}

    def _check_open(self) -> None:
        if self.closed:
            raise NotReady(f"model {self.name!r} has been closed")


class _Setbacks:
    """Deaths and failed starts since the last success, and how long to wait because of them."""

    def __init__(self, name: str, clock: Callable[[], float], figures: Figures) -> None:
        self._name = name
        self._clock = clock
        self._figures = figures
        self._times: deque[float] = deque(maxlen=LOOP_DEATHS)
        self._last = ""

    def add(self, error: SuperduperError) -> None:
        """Note one."""
        self._times.append(self._clock())
        self._last = error.message
        self._figures.setbacks += 1
        logger.warning("%s", self.trouble or error.message[:1000], extra={"event": "model.setback"})

    def clear(self) -> None:
        """It has worked."""
        self._times.clear()

    @property
    def seconds_left(self) -> float:
        """How long it is not started again, because there were five within a minute."""
        times = list(self._times)
        if len(times) < LOOP_DEATHS:
            return 0.0
        return max(0.0, times[0] + LOOP_SECONDS - self._clock())

    @property
    def trouble(self) -> str:
        """The same for people; empty if it may be started."""
        left = self.seconds_left
        if not left:
            return ""
        return (
            f"model {self._name!r} failed {LOOP_DEATHS} times within {LOOP_SECONDS:.0f} s and is "
            f"not started again for {left:.0f} s; the last time: {self._last:.1000}"
        )

    def pause(self) -> float:
        """Seconds to wait before the next start: none after the first setback, then ever more.

        Raises NotReady if there were five within a minute.
        """
        left, trouble = self.seconds_left, self.trouble
        if trouble:
            error = NotReady(trouble)
            error.retry_after = math.ceil(left)
            raise error
        count = len(self._times)
        if count < 2:
            return 0.0
        pause: float = FIRST_PAUSE_SECONDS * 2 ** (count - 2)
        return max(0.0, self._times[-1] + pause - self._clock())


def _message(values: Sequence[Any]) -> dict[str, Any]:
    if isinstance(values, Block):
        return {"op": "predict", **pack(values)}
    return {"op": "predict", "values": values}


def frames(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The values in parts of at most 256 values or 16 MiB; at least one part, if an empty one."""
    if isinstance(values, Block):
        most = max(1, min(FRAME_VALUES, FRAME_BYTES // values.row_bytes))
        if len(values) <= most:
            yield values  # whose buffers are not put together for a slice
            return
        for start in range(0, len(values), most):
            yield values[start : start + most]
        return
    part: list[Any] = []
    size = 0
    for value in values:
        weight = _size(value)
        if part and (len(part) == FRAME_VALUES or size + weight > FRAME_BYTES):
            yield part
            part, size = [], 0
        part.append(value)
        size += weight
    if part or not values:
        yield part


def _size(value: Any) -> int:
    """About how many bytes of BSON a value takes; exact where it matters, for large ones."""
    if isinstance(value, bytes | Binary | str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(key) + 8 + _size(item) for key, item in value.items())
    if isinstance(value, list):
        if value and not isinstance(value[0], bytes | str | Mapping | list):
            return 12 * len(value)
        return sum(8 + _size(item) for item in value)
    return 8
