"""Answers that come piece by piece, each when the one before has been taken.

The parent asks for every piece. So a reader that is slow holds nothing up, one that has gone ends
the work, and between two pieces the model answers others.
"""

import itertools
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

from superduper.errors import ChildDied, InvalidInput, SuperduperError
from superduper.serving.rows import Outcome

MOST_OPEN = 256

Message = dict[str, Any]


class OpenAnswers:
    """The answers that a model's process has begun and not ended; in that process."""

    def __init__(self) -> None:
        self._open: dict[int, Iterator[Outcome]] = {}
        self._numbers = itertools.count(1)

    def add(self, outcomes: Iterator[Outcome]) -> int:
        """Begin an answer, and tell its number.

        Raises InvalidInput if there are too many.
        """
        if len(self._open) >= MOST_OPEN:
            raise InvalidInput(f"{MOST_OPEN} answers of this model are being read: close some")
        number = next(self._numbers)
        self._open[number] = outcomes
        return number

    def next(self, number: int) -> Outcome | None:
        """The next outcome; None after the last.

        Raises KeyError if there is no such answer: another process began it.
        """
        outcome = next(self._open[number], None)
        if outcome is None or "error" in outcome:
            self.close(number)
        return outcome

    def close(self, number: int) -> None:
        """Nobody wants the rest."""
        outcomes = self._open.pop(number, None)
        if outcomes is not None:
            outcomes.close()  # type: ignore[attr-defined]  # they are generators


class Asking(Protocol):
    """Asks a model's process, as `ModelHost.ask` does."""

    def __call__(self, message: Message) -> Mapping[str, Any]: ...


def read(ask: Asking, value: Any) -> Generator[Mapping[str, Any], None, None]:
    """The outcomes of one value, as long as they are taken; in the parent.

    Raises what asking raises, ChildDied if the process that began the answer is there no more.
    """
    number = ask({"op": "open_answer", "value": value})["answer"]
    try:
        while True:
            found = ask({"op": "next_piece", "answer": number})
            if found.get("gone"):
                raise ChildDied("the model's process was started again in the middle of an answer")
            if found.get("outcome") is None:
                number = None
                return
            yield found["outcome"]
    finally:
        if number is not None:
            with suppress(SuperduperError):  # its process has ended, and the answer with it
                ask({"op": "close_answer", "answer": number})
