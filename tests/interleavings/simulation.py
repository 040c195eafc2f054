"""One document, some people and some of our processes, in a random order of their requests.

The processes are the real ones: the filler of a stream and of a scan (also one that writes over
another version's values, and one that clears), revert and redo. Each runs in a greenlet and gives
way before every request that it makes to the database, and while the model works. The database is
in memory. After each of our writes it is seen whether it changed what a person wrote.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import bson
from greenlet import getcurrent, greenlet

from superduper.imputations.corrections import Touch
from superduper.imputations.counters import Counters
from superduper.imputations.echoes import Echoes
from superduper.imputations.failures import key_of
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.isolate import Isolation, Patience
from superduper.imputations.process import Filler
from superduper.imputations.provenance import fill_of, input_hash, is_ours, value_hash
from superduper.imputations.revert import redo_version, revert_version
from tests.interleavings.memory import MemoryDatabase

Doc = dict[str, Any]
VERSIONS = (1, 2, 3)
INPUTS: tuple[Any, ...] = (1, 2.0, "a", None, [1], [[1], 2], {"$gt": 1}, {"a": 1})
PERSONS = ("set", "set", "unset", "x", "x", "replace", "save", "strip", "delete", "insert", "doubt")
RECORD = ImputationRecord(
    collection="docs",
    name="imputation",
    kind="imputation",
    spec={"on_input_change": "refill", "filter": None, "min_confidence": None},
    input_paths=("x",),
    target_paths=("y",),
    write_paths=("y",),
    created_at=0,
    created_by="test",
    latest=3,
    active=1,
    active_component=("model", 1),
)


class Violation(AssertionError):
    """One of our writes did what none may do."""


class Model:
    """Answers with its version and its input, some outputs being arrays; gives way meanwhile."""

    def __init__(self, version: int, work: Callable[[], None]) -> None:
        self.version = version
        self.work = work

    def predict(self, component: Any, values: list[Any], timeout: float) -> list[Doc]:
        """One outcome for each value."""
        self.work()
        told = [f"{self.version} of {value_hash(value)}" for value in values]
        return [{"value": [each] if self.version == 2 else each} for each in told]


class Interleaving:
    """One random order."""

    def __init__(self, seed: Any) -> None:
        self.random = random.Random(seed)
        self.database = MemoryDatabase()
        self.docs = self.database["docs"]
        self.database.before = self._give_way
        self.database.written = self._written
        self.main = getcurrent()
        self.persons_write = False
        #: What a person wrote last, while it must stand.
        self.persons: Any = None
        self.touched: Touch | None = None
        self.counts: Counter[str] = Counter()
        self.told: list[str] = []

    def run(self) -> Counter[str]:
        """Play it to the end; Violation if anything was wrong."""
        self._insert()
        self._past()
        ours = [greenlet(self._one_of_ours) for _ in range(self.random.randint(2, 3))]
        people = self.random.randint(1, 4)
        while ours or people:
            if people and self.random.randrange(len(ours) * 4 + people) < people:
                self._person()
                people -= 1
            elif ours:
                turn = self.random.choice(ours)
                turn.switch()
                ours = [each for each in ours if not each.dead]
        return self.counts

    def _past(self) -> None:
        """What has happened before: a fill, one that was written over, one that was taken back."""
        depth = self.random.randrange(6)
        if depth > 0:
            self._fill(1, None, "refill", alone=True)
        if depth > 2:
            self._fill(2, 1, "refill", alone=True)
        if depth > 3:
            version = self.random.choice((1, 2))
            revert_version(self.database, self._record(3, None, "refill"), version)  # type: ignore[arg-type]

    def _give_way(self) -> None:
        if getcurrent() is not self.main:
            self.main.switch()

    # Our side --------------------------------------------------------------------------------

    def _one_of_ours(self) -> None:
        version = self.random.choice(VERSIONS)
        act = self.random.choice(("stream", "stream", "scan", "refill", "clear", "revert", "redo"))
        self.told.append(f"begins {act} of {version}")
        if act == "revert":
            revert_version(self.database, self._record(version, None, "refill"), version)  # type: ignore[arg-type]
        elif act == "redo":
            redo_version(self.database, self._record(version, None, "refill"), version)  # type: ignore[arg-type]
        else:
            refilled = self.random.choice(VERSIONS) if act == "refill" else None
            policy = self.random.choice(("refill", "keep")) if act != "clear" else "clear"
            self._fill(version, refilled, policy)
        self.told.append(f"ends {act} of {version}")

    def _record(self, version: int, refilled: int | None, policy: str) -> ImputationRecord:
        scan = {} if refilled is None else {"refill": refilled}
        spec = {**RECORD.spec, "on_input_change": policy}
        return replace(RECORD, active=version, scan=scan, spec=spec)

    def _fill(
        self, version: int, refilled: int | None, policy: str, *, alone: bool = False
    ) -> None:
        work = self._give_way
        filler = Filler(
            self.database,  # type: ignore[arg-type]
            self._record(version, refilled, policy),
            Isolation(Model(version, work), object(), Patience(30.0)),
            clock=self.database.tick,
            counters=Counters(),
            echoes=Echoes(),
        )
        if alone or self.random.random() < 0.5:
            touched = None if self.touched is None else {key_of(0): self.touched}
            filler.fill_ids([0], touched)
        else:
            filler.finish(filler.prepare(filler.read([0])))

    def _written(self, collection: str, before: Doc | None, after: Doc) -> None:
        if collection != "docs":
            return
        self.counts["our writes"] += 1
        if before is None:
            raise Violation(f"a document was inserted: {self.told}")
        if self.persons is not None and before.get("y") != self.persons:
            raise Violation(f"the simulation lost a person's value: {self.told}")
        if "y" in before and not is_ours(before, "y") and not _equal(before, after, "y"):
            raise Violation(f"a person's {before['y']!r} is {after.get('y')!r}: {self.told}")
        if is_ours(before, "y") and "y" in after and fill_of(after, "y") is None:
            raise Violation(f"a value of ours is taken for a person's: {self.told}")
        if _others(before) != _others(after):
            raise Violation(f"another field was changed: {self.told}")
        if not _equal(before, after, "y"):
            self.counts["our changes"] += 1
            self._check_fill(before, after)

    def _check_fill(self, before: Doc, after: Doc) -> None:
        """What is written belongs to the input that is there, and says so."""
        fill = fill_of(after, "y")
        if "y" not in after:
            return
        if fill is None or not is_ours(after, "y"):
            raise Violation(f"a value without its provenance: {self.told}")
        if "x" not in before or fill["input"] != input_hash([before["x"]]):
            raise Violation(f"a value of another input: {self.told}")

    # The people ------------------------------------------------------------------------------

    def _person(self) -> None:
        """Somebody writes, with any driver: one request, whatever we are in the midst of."""
        act = self.random.choice(PERSONS)
        document = self.docs.documents.get(0)
        self.counts[f"person {act}"] += 1
        self.told.append(f"a person: {act}")
        if document is None:
            self._insert()
            return
        after = bson.decode(bson.encode(document))
        if act == "set":
            after["y"] = self.persons = self._own()
        elif act == "unset":
            after.pop("y", None)
            self.persons = None
        elif act == "doubt":  # sets a value and takes it away again
            self.touched = Touch(self.database.tick(), {"y": self._own()})
            after.pop("y", None)
            self.persons = None
        elif act == "x":
            after["x"] = self.random.choice(INPUTS)
        elif act == "replace":
            after = {"_id": 0, "x": self.random.choice(INPUTS), "y": self._own()}
            self.persons = after["y"]
        elif act == "save":  # what an object mapper does: all of it, as it was read, and a change
            after["y"] = self.persons = self._own()
            after["note"] = self.database.tick()
        elif act == "strip":
            after.pop("_fill", None)
        elif act == "delete":
            self.docs.documents.pop(0)
            self.persons = None
            return
        if "y" in after and not _equal(document, after, "y"):
            self.touched = Touch(self.database.tick(), {"y": after["y"]})
        self.docs.documents[0] = after

    def _insert(self) -> None:
        self.persons = self._own() if self.random.random() < 0.3 else None
        given = {} if self.persons is None else {"y": self.persons}
        self.docs.documents[0] = {"_id": 0, "x": self.random.choice(INPUTS), **given}

    def _own(self) -> Any:
        """A value that no model makes."""
        value = f"U{self.database.tick()}"
        return self.random.choice((value, [value], {"by": value}))


def _equal(before: Mapping[str, Any], after: Mapping[str, Any], field: str) -> bool:
    missing = object()
    return bool(before.get(field, missing) == after.get(field, missing)) or (
        field not in before and field not in after
    )


def _others(document: Mapping[str, Any]) -> Doc:
    return {key: value for key, value in document.items() if key not in ("y", "_fill")}
