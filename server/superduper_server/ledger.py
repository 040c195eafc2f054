"""What is counted against limits: in this process, or together with the others of one server.

For each name (a token's id, an address) there is how much of it is held now, and one note:
a value and the time of it. For the event loop's thread.
"""

from collections import OrderedDict
from typing import Protocol

REMEMBERED = 10_000


class Ledger(Protocol):
    """As a context it is this process's alone: what is looked up and changed inside holds.

    Entering it raises NotReady where another process does not leave it.
    """

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def held(self, name: str) -> int:
        """How much is held."""

    def hold(self, name: str, more: int) -> None:
        """Hold more; inside, unless it is less."""

    def note(self, name: str) -> tuple[float, float] | None:
        """The value that was noted last, and when; None if there is none (any more)."""

    def write(self, name: str, value: float, at: float) -> None:
        """Note a value; inside."""


class OwnLedger:
    """The ledger of a process that serves alone."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._notes: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def held(self, name: str) -> int:
        """How much is held."""
        return self._held.get(name, 0)

    def hold(self, name: str, more: int) -> None:
        """Hold more."""
        held = self._held[name] = self._held.get(name, 0) + more
        if not held:
            del self._held[name]

    def note(self, name: str) -> tuple[float, float] | None:
        """The value that was noted last, and when."""
        return self._notes.get(name)

    def write(self, name: str, value: float, at: float) -> None:
        """Note a value."""
        self._notes[name] = value, at
        self._notes.move_to_end(name)
        if len(self._notes) > REMEMBERED:
            self._notes.popitem(last=False)
