"""Users: threads with plain pymongo that change documents and keep a record of what must be true.

Each operation is made under the lock `world`, which whoever changes the whole collection holds.

Each document belongs to one user. An operation whose outcome is unknown leaves two possible states;
the user then leaves that document alone, and the checker accepts either.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError, PyMongoError

OPTIONS: dict[str, Any] = {
    "serverSelectionTimeoutMS": 3_000,
    "connectTimeoutMS": 3_000,
    "socketTimeoutMS": 5_000,
    "w": "majority",
}
POISON_SHARE = 0.02
LARGE_SHARE = 0.02
LARGE_AGAIN = 0.7
LARGE = 70_000
MISSING = "missing"
Change = Callable[[Any], Any]


@dataclass
class State:
    """What a user knows of a document: its input, the values people gave, and whether it is."""

    x: Any
    given: dict[str, str] = field(default_factory=dict)
    there: bool = True


@dataclass
class Known:
    """A document in the users' record; with two states if the last operation is unsure."""

    id: Any
    states: list[State]
    inputs: list[Any] = field(default_factory=list)

    @property
    def sure(self) -> bool:
        """Whether the last operation was acknowledged."""
        return len(self.states) == 1


class User(threading.Thread):
    """Changes documents of its own until it has inserted its share."""

    def __init__(
        self,
        number: int,
        address: str,
        *,
        world: threading.Lock,
        fields: Sequence[str],
        seed: int,
        inserts: int,
        seconds: float,
    ) -> None:
        super().__init__(name=f"user {number}", daemon=True)
        self.number = number
        self.record: list[Known] = []
        self.counts: Counter[str] = Counter()
        self.halt = threading.Event()
        self.error: BaseException | None = None
        self._world = world
        self._fields = fields
        self._address = address
        self._random = random.Random(f"{seed} {number}")
        self._inserts = inserts
        self._seconds = seconds

    def run(self) -> None:
        """Insert evenly over the time given, and do everything else in between."""
        began = time.monotonic()
        try:
            with MongoClient[dict[str, Any]](self._address, **OPTIONS) as client:
                docs = client["chaos"]["docs"]
                while len(self.record) < self._inserts and not self.halt.is_set():
                    ahead = self._seconds * len(self.record) / self._inserts
                    self.halt.wait(max(0.0, began + ahead - time.monotonic()))
                    with self._world:
                        self._insert(docs)
                    while self._chance(0.45):
                        with self._world:
                            self._change(docs)
        except BaseException as error:  # shown by the harness, which fails
            self.error = error

    # Operations ------------------------------------------------------------------------------

    def _insert(self, docs: Any) -> None:
        known = Known(self._new_id(), [State(None, there=False)])
        state = State(self._new_input())
        state.given = {name: self._new_value() for name in self._fields if self._chance(0.1)}
        self.record.append(known)
        document = {"_id": known.id, **_body(state)}
        self._do("insert", known, state, lambda: docs.insert_one(document))

    def _change(self, docs: Any) -> None:
        usable = [each for each in self._sample() if each.sure and each.states[0].there]
        if not usable:
            return
        known, that = usable[0], {"_id": usable[0].id}
        before = known.states[0]
        state = replace(before, given=dict(before.given))
        name = self._random.choice(self._fields)
        kind = self._random.choices(
            ["set y", "set x", "unset y", "replace", "delete"], [25, 35, 17, 11, 12]
        )[0]
        act: Callable[[], Any]
        if kind == "set y":
            state.given[name] = self._new_value()
            act = lambda: docs.update_one(that, {"$set": {name: state.given[name]}})  # noqa: E731
        elif kind == "set x":
            state.x = self._new_input(state.x)
            act = lambda: docs.update_one(that, {"$set": {"x": state.x}})  # noqa: E731
        elif kind == "unset y":
            state.given.pop(name, None)
            act = lambda: docs.update_one(that, {"$unset": {name: ""}})  # noqa: E731
        elif kind == "replace":
            state.x = self._new_input()
            state.given = {each: self._new_value() for each in self._fields if self._chance(0.3)}
            act = lambda: docs.replace_one(that, _body(state))  # noqa: E731
        else:
            state.there = False
            act = lambda: docs.delete_one(that)  # noqa: E731
        self._do(kind, known, state, act)

    def _do(self, kind: str, known: Known, after: State, act: Callable[[], Any]) -> None:
        """Operate; both states are possible from before the call until it is acknowledged."""
        known.states = [known.states[0], after]
        known.inputs.append(after.x)
        self.counts[kind] += 1
        try:
            act()
        except DuplicateKeyError:  # the driver sent an insert again that had been done
            known.states = [after]
        except PyMongoError:
            self.counts["unsure"] += 1
        else:
            known.states = [after]

    def dropped(self) -> None:
        """All documents are gone, unless one comes by an operation that was never acknowledged."""
        for known in self.record:
            gone = State(known.states[0].x, there=False)
            known.states = [gone] if known.sure else [gone, known.states[-1]]

    def _sample(self) -> list[Known]:
        """A few documents, most of them young: those are being filled just now."""
        young, old = self.record[-20:], self.record
        return self._random.choices(young, k=3) + self._random.choices(old, k=3)

    # Contents --------------------------------------------------------------------------------

    def _new_id(self) -> Any:
        number = 2 * len(self.record) + self.number
        kinds: list[Any] = [
            number,
            f"s{number}",
            ObjectId(self._random.randbytes(12)),
            {"a": number, "b": "sub"},
        ]
        return self._random.choice(kinds)

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _new_value(self) -> str:
        return f"U{self._random.getrandbits(64):x}"

    def _new_input(self, before: Any = None) -> Any:
        """One of all kinds; where a large one was there often another of the same size."""
        draw, number = self._random, self._random.randrange(10**6)
        if draw.random() < POISON_SHARE:
            kind = draw.choices(["raise", "exit", "hang"], [6, 3, 1])[0]
            return {"poison": kind, "n": number}
        inputs: list[Any] = [
            number,
            number / 8,
            f"text {number}",
            [number, number + 1],
            [[number % 7, 1], ["a", None]],
            [],
            None,
            {"$gt": number},
            {"a": {"b": number}},
        ]
        was_large = isinstance(before, str) and len(before) > LARGE
        if draw.random() < (LARGE_AGAIN if was_large else LARGE_SHARE):
            return f"{number:06} " * (LARGE // 7 + 1)
        return draw.choice(inputs)


def _body(state: State) -> dict[str, Any]:
    return {"x": state.x, **state.given}
