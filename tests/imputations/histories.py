"""Random histories of documents, and an oracle that says what should be in them.

Each document is a history of its own: users write to some of them, versions fill some of them, and
versions are taken back and put back. The oracle keeps, for each document, the values of ours in
the order in which they were written over each other; it knows nothing of how that is stored.
"""

import random
from dataclasses import dataclass, field, replace
from typing import Any

from filling import Filling, FunctionPredictor, record_of
from pymongo import DeleteOne, ReplaceOne, UpdateOne
from pymongo.database import Database

from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.isolate import Isolation, Patience
from superduper.imputations.process import Filler
from superduper.imputations.revert import redo_version, revert_version

VERSIONS = (1, 2, 3)
INPUTS = 3
BLANK = "nothing"
ACTS = {"set": 3, "unset": 3, "clean": 1, "x": 5, "replace": 1, "delete": 1}


def answer(version: int, x: Any) -> str:
    """What a version makes of an input."""
    return f"{version} of {x}"


@dataclass
class Written:
    """A value of ours, and whether it was taken back."""

    version: int
    x: Any
    withdrawn: bool = False

    @property
    def value(self) -> str:
        return answer(self.version, self.x)


Stack = list[Written]


@dataclass
class Expected:
    """One document: what shows, and the stacks of what was written, the latest last."""

    x: Any
    persons: Any = None
    shown: Written | None = None
    #: Provenance without its value, which a user has removed or changed.
    left_over: bool = False
    stacks: list[Stack] = field(default_factory=list)
    mark: tuple[Any, int] | None = None
    there: bool = True

    def y(self) -> Any:
        """What should be in the field."""
        if self.persons is not None:
            return self.persons
        return BLANK if self.shown is None else self.shown.value

    # What users do ---------------------------------------------------------------------------

    def touched(self, persons: Any, *, left_over: bool) -> None:
        """A user set or removed the field; what was under it is of no matter any more."""
        self.left_over = left_over and (self.left_over or self.shown is not None)
        self.stacks = [each for each in self.stacks if not any(w is self.shown for w in each)]
        self.persons, self.shown = persons, None

    # What versions do ------------------------------------------------------------------------

    def fill(self, version: int, refilled: int | None) -> None:
        """A version is asked to bring the document up to date."""
        if self.persons is not None:
            self.left_over, self.mark = False, None
        elif self.shown is None:
            if self.mark != (self.x, version):
                self._begin(version)
        elif self.shown.x != self.x:
            self._begin(version)
        elif self.shown.version == refilled:
            self._write_over(version)
        else:
            self.mark = None

    def _begin(self, version: int) -> None:
        if self.shown is not None:
            self._part()
        self.shown = Written(version, self.x)
        self.stacks.append([self.shown])
        self.left_over, self.mark = False, None

    def _write_over(self, version: int) -> None:
        beneath = self._part()
        self.shown, self.mark = Written(version, self.x), None
        self.stacks.append([*beneath, self.shown])

    def _part(self) -> Stack:
        """Cut off what was taken back from above what shows; answers the rest, off the stacks."""
        stack = self._stack_of_shown()
        self.stacks = [each for each in self.stacks if each is not stack]
        depth = next(i for i, each in enumerate(stack) if each is self.shown)
        if stack[depth + 1 :]:
            self.stacks.append(stack[depth + 1 :])
        return stack[: depth + 1]

    def _stack_of_shown(self) -> Stack:
        return next(each for each in self.stacks if any(w is self.shown for w in each))

    def revert(self, version: int, live: int) -> bool:
        """A version is taken back; whether that shows."""
        for stack in self.stacks:
            for each in stack:
                each.withdrawn = each.withdrawn or each.version == version
        if self.shown is None or self.shown.version != version:
            return False
        taken = self.shown
        self.shown = self._showing(self._stack_of_shown())
        if self.shown is None and version == live:
            self.mark = (taken.x, version)
        return True

    def redo(self, version: int) -> bool:
        """It is put back; whether that shows."""
        for stack in reversed(self.stacks):
            its = [each for each in stack if each.withdrawn and each.version == version]
            if not its or not self._as_left(stack):
                continue
            for each in its:
                each.withdrawn = False
            before, self.shown = self.shown, self._showing(stack) or self.shown
            self.mark = self.mark if self.shown is before else None
            return self.shown is not before
        return False

    def _as_left(self, stack: Stack) -> bool:
        if self.persons is not None or self.left_over:
            return False
        if self.shown is None:
            return self._showing(stack) is None
        return self.shown is next((each for each in reversed(stack) if not each.withdrawn), None)

    def _showing(self, stack: Stack) -> Written | None:
        top = next((each for each in reversed(stack) if not each.withdrawn), None)
        return top if top is not None and top.x == self.x else None


class Histories:
    """A collection whose documents have random histories, beside what the oracle expects."""

    def __init__(self, database: Database[Any], seed: int, documents: int) -> None:
        self.database = database
        self.random = random.Random(seed)
        self.filling = Filling(database)
        self.expected = {n: Expected(self.random.randrange(INPUTS)) for n in range(documents)}
        self.docs = database["docs"]
        self.docs.insert_many({"_id": n, "x": each.x} for n, each in self.expected.items())
        self.live = 1
        self.refilled: int | None = None
        self.told: list[str] = []

    def _some(self) -> list[int]:
        there = [n for n, each in self.expected.items() if each.there]
        return self.random.sample(there, k=len(there) * self.random.randrange(2, 10) // 10)

    def _record(self) -> ImputationRecord:
        scan = {} if self.refilled is None else {"refill": self.refilled}
        return replace(record_of(), active=self.live, scan=scan)

    def filler(self) -> Filler:
        """The filler of the live version."""
        live = self.live
        predictor = FunctionPredictor(lambda x: answer(live, x))
        return Filler(
            self.database,
            self._record(),
            Isolation(predictor, object(), Patience(30.0)),
            clock=self.filling.clock,
            counters=self.filling.counters,
            echoes=self.filling.echoes,
        )

    def step(self) -> None:
        """One random step, for all or for some of the documents."""
        chosen = self.random.choices(
            (self.fill, self.users, self.revert, self.redo, self.promote), (5, 3, 3, 3, 3)
        )[0]
        chosen()

    def fill(self) -> None:
        """The live version fills some."""
        some = self._some()
        self.filler().fill_ids(some)
        for n in some:
            self.expected[n].fill(self.live, self.refilled)
        self.told.append(f"fill {self.live} instead of {self.refilled}")

    def promote(self) -> None:
        """Another version is live, and may be asked to write over the one before."""
        before = self.live
        self.live = self.random.choice([each for each in VERSIONS if each != before])
        self.refilled = self.random.choice([None, before])

    def revert(self) -> None:
        """A version is taken back, as often as one likes."""
        version = self.random.choice(VERSIONS)
        found = revert_version(self.database, self._record(), version)
        there = [each for each in self.expected.values() if each.there]
        assert found == sum([each.revert(version, self.live) for each in there]), self.told
        self.told.append(f"revert {version} while {self.live} is live")

    def redo(self) -> None:
        """A version is put back."""
        version = self.random.choice(VERSIONS)
        found = redo_version(self.database, self._record(), version)
        there = [each for each in self.expected.values() if each.there]
        assert found == sum([each.redo(version) for each in there]), self.told
        self.told.append(f"redo {version}")

    def users(self) -> None:
        """Users write to some, with plain updates."""
        updates = [self._users_update(n, self.expected[n]) for n in self._some()]
        if updates:
            self.docs.bulk_write(updates)
        self.told.append("users")

    def _users_update(self, n: int, each: Expected) -> Any:
        act = self.random.choices(list(ACTS), list(ACTS.values()))[0]
        this = {"_id": n}
        if act == "set":
            each.touched(f"U{self.random.random()}", left_over=True)
            return UpdateOne(this, {"$set": {"y": each.persons}})
        if act == "unset":
            each.touched(None, left_over=True)
            return UpdateOne(this, {"$unset": {"y": ""}})
        if act == "clean":
            each.touched(None, left_over=False)
            return UpdateOne(this, {"$unset": {"y": "", "_fill": ""}})
        each.x = self.random.randrange(INPUTS)
        if act == "x":
            return UpdateOne(this, {"$set": {"x": each.x}})
        if act == "replace":
            each.touched(None, left_over=False)
            return ReplaceOne(this, {"x": each.x})
        each.there = False
        return DeleteOne(this)

    def check(self) -> None:
        """Every document is as the oracle expects."""
        found = {each["_id"]: each.get("y", BLANK) for each in self.docs.find()}
        expected = {n: each.y() for n, each in self.expected.items() if each.there}
        wrong = {n: (found.get(n), y) for n, y in expected.items() if found.get(n) != y}
        assert not wrong, f"{len(wrong)} differ: {list(wrong.items())[:5]} after {self.told}"
        assert set(found) == set(expected)
