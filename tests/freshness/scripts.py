"""Random edits of documents whose fields are computed from each other, and what must come of them.

The imputations form a graph with a diamond in it: `b` and `c` from `a`, `d` from both, and others
at random. The stream of changes, the decisions and the updates are the real ones, on a real store;
the models are functions that forget some of their input, so that a value may come out unchanged.
An oracle that knows only the graph and the functions says which inputs each model is to be run on,
what is stale before that, and what stands in the end.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pymongo.database import Database

from superduper.commands import FindDocuments
from superduper.imputations.counters import Counters
from superduper.imputations.echoes import Echoes
from superduper.imputations.fresh import fresh_documents
from superduper.imputations.graph import Graph
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.isolate import Isolation, Patience
from superduper.imputations.process import Filler
from superduper.imputations.watching.crew import ServerClock
from superduper.imputations.watching.events import call_of
from superduper.store.changes import Changes

ROOTS = ("a", "r")
DIAMOND = {"b": ("a",), "c": ("a",), "d": ("b", "c")}
DOCUMENTS = 3
BLANK = "nothing"


@dataclass
class Node:
    """A field that is computed from others; its model runs are noted, input by input."""

    name: str
    inputs: tuple[str, ...]
    factor: int
    divisor: int
    runs: Counter[tuple[int, ...]] = field(default_factory=Counter)

    def answer(self, inputs: tuple[int, ...]) -> int:
        """The model, which forgets what the division leaves."""
        return self.factor + sum(inputs) // self.divisor

    def predict(self, component: Any, values: list[Any], timeout: float) -> list[dict[str, Any]]:
        """One outcome for each value."""
        outcomes = []
        for value in values:
            given = (value,) if len(self.inputs) == 1 else tuple(value[k] for k in self.inputs)
            self.runs[given] += 1
            outcomes.append({"value": self.answer(given)})
        return outcomes

    @property
    def record(self) -> ImputationRecord:
        """The imputation."""
        return ImputationRecord(
            collection="docs",
            name=self.name,
            kind="imputation",
            spec={"on_input_change": "refill", "filter": None, "min_confidence": None},
            input_paths=self.inputs,
            target_paths=(self.name,),
            write_paths=(self.name,),
            created_at=0,
            created_by="test",
            latest=1,
            active=1,
            active_component=("model", 1),
        )


@dataclass
class Expected:
    """One document: its fields, and from which inputs ours were computed."""

    fields: dict[str, int]
    computed: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def inputs(self, node: Node) -> tuple[int, ...] | None:
        if any(name not in self.fields for name in node.inputs):
            return None
        return tuple(self.fields[name] for name in node.inputs)

    def is_fresh(self, name: str, nodes: dict[str, Node]) -> bool:
        if name not in self.computed:
            return True
        node = nodes[name]
        same = self.computed[name] == self.inputs(node)
        return same and all(self.is_fresh(each, nodes) for each in node.inputs)

    def settle(self, node: Node) -> tuple[int, ...] | None:
        """Compute a field if it is due; answers from which inputs."""
        inputs = self.inputs(node)
        ours = node.name in self.computed
        if inputs is None or (node.name in self.fields and not ours):
            return None
        if ours and self.computed[node.name] == inputs:
            return None
        self.fields[node.name] = node.answer(inputs)
        self.computed[node.name] = inputs
        return inputs


class Script:
    """A graph, some documents, and edits of them."""

    def __init__(self, database: Database[Any], seed: Any) -> None:
        self.random = random.Random(seed)
        self.database = database
        self.docs = database["docs"]
        self.nodes = self._graph()
        self.counters, self.echoes = Counters(), Echoes()
        imputations = Imputations(database)
        for node in self.nodes.values():
            imputations.create(node.record)
            imputations.documents.update_one({"_id": node.record.id}, {"$set": {"active": 1}})
        graph = Graph(imputations.find("docs"))
        self.clock = ServerClock(database)
        self.fillers = [self._filler(node, graph) for node in self.nodes.values()]
        self.random.shuffle(self.fillers)
        self.expected: dict[int, Expected] = {}
        self.marks = 0

    def _graph(self) -> dict[str, Node]:
        shapes: dict[str, tuple[str, ...]] = dict(DIAMOND)
        for name in "efg"[: self.random.randrange(4)]:
            readable = [*ROOTS, *shapes]
            shapes[name] = tuple(self.random.sample(readable, self.random.randint(1, 3)))
        return {
            name: Node(name, inputs, self.random.randrange(5), self.random.randint(1, 3))
            for name, inputs in shapes.items()
        }

    def _filler(self, node: Node, graph: Graph) -> Filler:
        return Filler(
            self.database,
            node.record,
            Isolation(node, object(), Patience(30.0)),
            clock=self.clock,
            counters=self.counters,
            echoes=self.echoes,
            graph=graph,
        )

    def run(self, edits: int) -> int:
        """Insert, then edit and settle so many times; answers how many model runs there were."""
        with Changes(self.docs) as self.changes:
            for n in range(DOCUMENTS):
                self.expected[n] = Expected({root: self.random.randrange(9) for root in ROOTS})
            self.docs.insert_many({"_id": n, **e.fields} for n, e in self.expected.items())
            total = self._settle()
            for _ in range(edits):
                for _ in range(self.random.randint(1, 3)):
                    self._edit()
                self._check_fresh_reads()
                total += self._settle()
        return total

    # People ----------------------------------------------------------------------------------

    def _edit(self) -> None:
        n = self.random.randrange(DOCUMENTS)
        expected = self.expected[n]
        name = self.random.choice((*ROOTS, *ROOTS, *ROOTS, *self.nodes))
        expected.computed.pop(name, None)
        if self.random.random() < 0.2:
            expected.fields.pop(name, None)
            self.docs.update_one({"_id": n}, {"$unset": {name: ""}})
            return
        # What people give is never what a model gives, and so is never taken for it.
        value = self.random.randrange(9) if name in ROOTS else 1000 + self.random.randrange(10**6)
        expected.fields[name] = value
        self.docs.update_one({"_id": n}, {"$set": {name: value}})

    # The watcher -----------------------------------------------------------------------------

    def _settle(self) -> int:
        """Answer changes until none is left, and compare everything with the oracle."""
        while self._answer_changes():
            pass
        runs = 0
        for name, node in self.nodes.items():
            due = Counter(filter(None, (each.settle(node) for each in self.expected.values())))
            assert node.runs == due, f"{name} ran on {node.runs} and not on {due}"
            runs += node.runs.total()
            node.runs.clear()
        for n, each in self.expected.items():
            found = self.docs.find_one({"_id": n}) or {}
            fields = {k: v for k, v in found.items() if k not in ("_id", "_fill")}
            assert fields == each.fields, f"document {n} is {fields} and not {each.fields}"
        return runs

    def _answer_changes(self) -> bool:
        """Answer all changes up to a mark; whether that wrote anything."""
        self.marks += 1
        self.docs.insert_one({"_id": f"mark {self.marks}"})
        self.counters.take()
        seen = False
        while not seen:
            batch = self.changes.next_batch(self.random.choice((1, 2, 64)), 500)
            seen = any(change.id == f"mark {self.marks}" for change in batch)
            for filler in self.fillers:
                sources = filler.graph.source_paths(filler.record)
                call = call_of(filler.record, batch, self.echoes, sources)
                if call.ids:
                    filler.fill_ids(call.ids, call.touched)
        return bool(self.counters.take().keys() & {"filled", "corrected"})

    # Readers ---------------------------------------------------------------------------------

    def _check_fresh_reads(self) -> None:
        """Before anything is computed anew, readers of fresh values get those and no other."""
        wanted = FindDocuments(collection="docs", filter={"_id": {"$type": "number"}}, fresh=True)
        found = {each["_id"]: each for each in fresh_documents(self.database, wanted, 60_000)}
        for n, each in self.expected.items():
            fresh = {k: v for k, v in each.fields.items() if each.is_fresh(k, self.nodes)}
            shown = {k: v for k, v in found[n].items() if k not in ("_id", "_fill")}
            assert shown == fresh, f"of document {n} readers see {shown} and not {fresh}"
