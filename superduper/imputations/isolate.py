"""Predictions for many documents at once, where one that kills or hangs the model fails alone.

One whose own preprocess, function or postprocess ends the process, or does not end, is named by the
child: it costs one death. A batch that does so in the model itself is parted until the culprit is
alone, about log8(n) deaths; all others get their outputs. How long a batch may take is learned from
those that went well, so that a document that never ends costs seconds and not the whole allowance.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from superduper.errors import ChildDied, NotReady, SuperduperError, TimedOut, TooLarge

Outcome = dict[str, Any]
LEAST_SECONDS = 2.0
REMEMBERED = 15
SLACK = 20.0
PARTS = 8
PARTS_OF_SLOW = 64


class Predictor(Protocol):
    """Where models run: one outcome for each value, in order."""

    def predict(self, component: Any, values: list[Any], timeout: float) -> list[Outcome]: ...


class ModelUnusable(SuperduperError):
    """The model itself does not work: no document is to blame."""

    code = "model_unusable"
    status = 503


class Patience:
    """How long a prediction of `count` values may take; at most `limit_seconds`.

    The usual pace is the median of the last few, so that one that had to wait (for a process that
    started, or for others) says nothing about the next.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self._paces: deque[float] = deque(maxlen=REMEMBERED)

    def seconds(self, count: int, attempt: int = 1) -> float:
        """The time allowed; later attempts get more, the third all there is."""
        if not self._paces or attempt >= 3:
            return self.limit_seconds
        wanted = SLACK * attempt * self.expected(count)
        return min(self.limit_seconds, max(LEAST_SECONDS * attempt, wanted))

    def expected(self, count: int) -> float:
        """How many seconds a prediction may well take, by those that went well; inf: no idea."""
        return statistics.median(self._paces) * count if self._paces else math.inf

    def learn(self, count: int, seconds: float) -> None:
        """Take note of a prediction that went well."""
        self._paces.append(seconds / max(count, 1))


class BatchSize:
    """How many documents go into one batch: halved when one fails, grown back when all is well."""

    def __init__(self, largest: int, first: int | None = None) -> None:
        self.largest = largest
        self.now = min(first or largest, largest)
        self._well = 0

    def shrink(self) -> None:
        """A batch died or outlasted its time."""
        self.now, self._well = max(1, self.now // 2), 0

    def grow(self) -> None:
        """A batch went well; four in a row double the size."""
        self._well += 1
        if self._well >= 4 and self.now < self.largest:
            self.now, self._well = min(self.largest, self.now * 2), 0


class Isolation:
    """Predictions of one model version that keep documents from harming each other.

    `note_death` is told the kind of error each time that the model's process had to end.
    """

    def __init__(
        self,
        predictor: Predictor,
        component: Any,
        patience: Patience,
        note_death: Callable[[str], None] = lambda error: None,
    ) -> None:
        self.predictor = predictor
        self.component = component
        self.patience = patience
        self.deaths = 0
        self._note_death = note_death

    def predict(
        self,
        values: Sequence[Any],
        count_attempt: Callable[[int], None],
        held_up: Callable[[], None] | None = None,
    ) -> list[Outcome]:
        """One outcome for each value; `count_attempt(position)` is called before a run alone.

        `held_up` is called when it is going to take long, because a batch ended the process.
        Raises ModelUnusable if the model fails whatever it is given.
        """
        parting = _Parting(self, values, count_attempt, held_up or _nothing)
        parting.part(0, len(values))
        return parting.outcomes

    def alone(self, value: Any, attempt: int) -> Outcome:
        """The outcome for a value that is tried by itself, its attempt already counted."""
        try:
            return self.run([value], attempt)[0]
        except (ChildDied, TimedOut, TooLarge) as error:
            self.recover(error)
            return {"error": describe(error)}

    def run(self, values: Sequence[Any], attempt: int) -> list[Outcome]:
        """One prediction of them all, which may end the process.

        Raises ModelUnusable if the model fails whatever it is given.
        """
        seconds = self.patience.seconds(len(values), attempt)
        began = time.monotonic()
        try:
            outcomes = self.predictor.predict(self.component, list(values), seconds)
        except (ChildDied, TimedOut, TooLarge):
            raise
        except NotReady:
            raise
        except SuperduperError as error:
            raise ModelUnusable(f"{type(error).__name__}: {error.message}") from error
        if len(outcomes) != len(values):
            raise ModelUnusable(f"{len(outcomes)} outcomes came back for {len(values)} values")
        self.patience.learn(len(values), time.monotonic() - began)
        return outcomes

    def make_ready(self) -> None:
        """See that the model runs at all, so that no document is blamed for it.

        Raises ModelUnusable if it does not.
        """
        try:
            self.predictor.predict(self.component, [], self.patience.limit_seconds)
        except SuperduperError as error:
            raise ModelUnusable(f"{type(error).__name__}: {error.message}") from error

    def recover(self, error: SuperduperError) -> None:
        """After a process had to end: count it, and see that the model still runs."""
        self.deaths += 1
        self._note_death(describe(error)["type"])
        self.make_ready()


class _Parting:
    """The values of one prediction, parted until who ends the process is alone."""

    def __init__(
        self,
        isolation: Isolation,
        values: Sequence[Any],
        count_attempt: Callable[[int], None],
        held_up: Callable[[], None],
    ) -> None:
        self.outcomes: list[Outcome] = [{} for _ in values]
        self._isolation = isolation
        self._values = values
        self._count_attempt = count_attempt
        self._held_up = held_up

    def part(self, start: int, stop: int) -> None:
        """Find the outcomes from one position to another."""
        try:
            self.outcomes[start:stop] = self._isolation.run(self._values[start:stop], 1)
            return
        except (ChildDied, TimedOut, TooLarge) as error:
            self._held_up()
            self._isolation.recover(error)
            if stop - start == 1:  # the whole batch was one document: that was its attempt
                self.outcomes[start] = {"error": describe(error)}
                return
            position = None if isinstance(error, TooLarge) else error.position
            if position is not None and position < stop - start:
                self._around(error, start + position, start, stop)
                return
            # A run of innocents is cheap. Eight parts find a culprit with a third of the deaths
            # that halves need; one that never ends costs all the time it is given, each time.
            parts = PARTS_OF_SLOW if isinstance(error, TimedOut) else PARTS
        size = max(1, (stop - start) // parts)
        for first in range(start, stop, size):
            last = min(first + size, stop)
            if last - first == 1:
                self._count_attempt(first)
                self.outcomes[first] = self._isolation.alone(self._values[first], 1)
            else:
                self.part(first, last)

    def _around(self, error: SuperduperError, culprit: int, start: int, stop: int) -> None:
        """Let a document alone that was seen to end the process, or not to end, which was its
        attempt; do the others.
        """
        self._count_attempt(culprit)
        self.outcomes[culprit] = {"error": describe(error)}
        for first, last in ((start, culprit), (culprit + 1, stop)):
            if first < last:
                self.part(first, last)


def _nothing() -> None:
    """What most have to do when a prediction takes long."""


def describe(error: SuperduperError) -> dict[str, str]:
    """An error as it is kept with a document."""
    return {"type": type(error).__name__, "message": error.message, "traceback": ""}
