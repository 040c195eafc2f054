"""A filler on a real collection, its model a function of the test: for races in slow motion."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bson
from pymongo.database import Database

from superduper.imputations.counters import Counters
from superduper.imputations.echoes import Echoes
from superduper.imputations.failures import key_of
from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.imputations.isolate import BatchSize, Isolation, Patience
from superduper.imputations.process import Filler
from superduper.imputations.provenance import value_hash
from superduper.imputations.watching.fair_lock import FairLock
from superduper.imputations.watching.scan import Scan
from superduper.store.by_id import IdIndex


def record_of(
    inputs: Sequence[str] = ("x",),
    writes: Sequence[str] = ("y",),
    name: str = "imputation",
    **changes: Any,
) -> ImputationRecord:
    """The record of a live imputation on the collection `docs`."""
    spec = {"on_input_change": "refill", "filter": None, "min_confidence": None}
    return ImputationRecord(
        collection="docs",
        name=name,
        kind="imputation",
        spec=spec | changes,
        input_paths=tuple(inputs),
        target_paths=tuple(writes),
        write_paths=tuple(writes),
        created_at=0,
        created_by="test",
        latest=1,
        active=1,
        active_component=("model", 1),
    )


class FunctionPredictor:
    """Answers with a function of the value; remembers what it was asked."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.asked: list[Any] = []

    def predict(self, component: Any, values: list[Any], timeout: float) -> list[dict[str, Any]]:
        """One outcome for each value; values are as they are in a child, on the other side."""
        values = [bson.decode(bson.encode({"": value}))[""] for value in values]
        self.asked += values
        return [self._outcome(value) for value in values]

    def _outcome(self, value: Any) -> dict[str, Any]:
        try:
            output = self.function(value)
        except Exception as error:
            return {"error": {"type": type(error).__name__, "message": str(error)}}
        return output if isinstance(output, dict) and "value" in output else {"value": output}


def describe(value: Any) -> str:
    """An output that tells exactly which input it was computed from."""
    return f"of {value_hash(value)}"


class Filling:
    """A filler and its parts."""

    def __init__(
        self,
        database: Database[Any],
        function: Callable[[Any], Any] = describe,
        record: ImputationRecord | None = None,
    ) -> None:
        self.database = database
        self.docs = database["docs"]
        self.predictor = FunctionPredictor(function)
        self.counters = Counters()
        self.echoes = Echoes()
        self.now = 1_700_000_000_000
        self.filler = self.filler_of(record or record_of())

    def filler_of(self, record: ImputationRecord) -> Filler:
        """A filler for a record, with the parts of this one."""
        isolation = Isolation(self.predictor, object(), Patience(30.0))
        return Filler(
            self.database,
            record,
            isolation,
            clock=self.clock,
            counters=self.counters,
            echoes=self.echoes,
        )

    def clock(self) -> int:
        """A clock that never says the same twice."""
        self.now += 1
        return self.now

    def race(self, document_id: Any, between: Callable[[], object]) -> Mapping[str, Any] | None:
        """Read and predict for a document, let something happen, then write."""
        prepared = self.filler.prepare(self.filler.read([document_id]))
        between()
        self.filler.finish(prepared)
        return self.docs.find_one({"_id": document_id})

    def failures_by_key(self) -> dict[bytes, dict[str, Any]]:
        """The failures by `key_of` their documents' ids, for ids of all types."""
        found = self.database["superduper.failures"].find()
        return {key_of(each["document"]): each for each in found}

    def failures(self) -> dict[Any, dict[str, Any]]:
        """The failures by document."""
        found = self.database["superduper.failures"].find()
        return {each["document"]: each for each in found}


def scan_of(
    filling: Filling, imputations: Imputations, record: ImputationRecord, size: int = 7
) -> Scan:
    """A worker's part in a scan, in small batches."""
    scan = Scan(
        imputations,
        record,
        filling.filler_of(record),
        threading.Event(),
        FairLock(),
        IdIndex(filling.docs),
    )
    scan.size = BatchSize(size)
    return scan
