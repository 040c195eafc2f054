"""Documents out of domain, from the fit that learns what they are to the worker that fills none."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pymongo.database import Database
from safetensors.torch import load, save
from sklearn.datasets import load_digits
from tables import Table
from watching import Watching

from superduper.errors import InvalidInput
from superduper.fields import codec
from superduper.imputations.counts import count_states
from superduper.imputations.fitting.domain import fit_domain
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.states import States
from superduper.serving.domain import Domain
from tests.imputations.fitting import Classifier, Fitting, Labels, points
from tests.waiting import until

DIGITS = load_digits()
# As they come, the later ones are by other writers.
ORDER = np.random.default_rng(0).permutation(len(DIGITS.data))
IMAGES = torch.tensor(DIGITS.data[ORDER], dtype=torch.float32)
LABELS = DIGITS.target[ORDER]
NAMES = [f"digit {number}" for number in range(10)]


class Digits(Classifier):
    """A linear model on 64 pixels; a bare one but for the name of its class."""

    def __init__(self) -> None:
        super().__init__(NAMES, 64)


def digits(count: int, first: int = 0) -> dict[int, tuple[Any, Any]]:
    return {i: (IMAGES[i], f"digit {LABELS[i]}") for i in range(first, first + count)}


def register_digits(fitting: Fitting) -> None:
    fitting.register_all(Digits(), Labels(NAMES))


def insert_inputs(fitting: Fitting, inputs: dict[Any, Any]) -> None:
    """Documents without a value."""
    fitting.docs.insert_many(
        {"_id": id, **codec.encode_document({"x": x})} for id, x in inputs.items()
    )


def domain_of(fitting: Fitting, version: int) -> Domain | None:
    """The domain that is kept with a version of the model."""
    component = fitting.registry.get("docs", "model", "model", version)
    kept = fitting.registry.payload(component)["domain"]
    return None if kept is None else Domain.of(load(kept["blob"]))


# The fit -------------------------------------------------------------------------------------


def test_a_fit_learns_the_domain_and_its_run_tells_of_it(fitting: Fitting) -> None:
    fitting.insert(digits(600))
    register_digits(fitting)
    run = fitting.fit(fitting.declare(max_epochs=2, out_of_domain=0.01, batch_size=64))
    held_back = run["data"]["valid"]["n"] + run["data"]["test"]["n"]
    found = domain_of(fitting, 2)
    assert found is not None and found.references.shape == (run["data"]["train"]["n"], 64)
    assert run["domain"] == {
        "threshold": found.threshold,
        "references": run["data"]["train"]["n"],
        "calibrated_on": held_back,
    }
    assert run["settings"]["out_of_domain"] == 0.01
    component = fitting.registry.get("docs", "model", "model", 2)
    record = fitting.work.artifacts.fetch(component.domain or "").record
    assert record["format"] == "safetensors" and record["purpose"] == "weights"
    assert component.record["domain"] == component.domain != component.weights
    outside = found.outside([*IMAGES[600:1000]])
    assert sum(each is not None for each in outside) < 20


def test_a_fit_that_did_not_ask_for_it_keeps_none(fitting: Fitting) -> None:
    fitting.insert(points(40))
    fitting.register_all()
    run = fitting.fit(fitting.declare(max_epochs=1))
    assert run["domain"] is None and domain_of(fitting, 2) is None
    assert "domain" not in fitting.registry.get("docs", "model", "model", 2).record


def test_the_same_seed_and_data_give_the_same_domain(fitting: Fitting) -> None:
    fitting.insert(digits(300))
    register_digits(fitting)
    record = fitting.declare(max_epochs=1, out_of_domain=0.05)
    runs = [fitting.fit(record) for _ in range(2)]
    assert [run["reopened"] for run in runs] == [False, True]
    assert runs[0]["domain"] == runs[1]["domain"]
    # The same weights and the same domain are the same version of the model.
    assert runs[0]["model_version"] == runs[1]["model_version"]


def test_too_few_documents_fail_the_fit_before_the_training(fitting: Fitting) -> None:
    fitting.insert(points(60))
    fitting.register_all()
    record = fitting.declare(out_of_domain=0.01)
    with pytest.raises(InvalidInput, match=r"needs at least 99 documents .* there are \d+:"):
        fitting.fit(record)
    run = fitting.run_of(record)
    assert run["status"] == "failed"
    assert fitting.work.runs.get(run["_id"])["history"] == []
    error = fitting.imputations.get("docs", record.name).error
    assert error is not None and "add documents, or allow a larger share" in error["message"]


def test_whole_numbers_that_are_looked_up_are_refused(fitting: Fitting) -> None:
    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(9, 2)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.table(tokens).sum(1)  # type: ignore[no-any-return]

    fitting.insert({i: ([i % 9, 1, 2], "high" if i % 2 else "low") for i in range(100)})
    fitting.register_all(Tokens())
    with pytest.raises(InvalidInput, match="distance between such numbers means nothing"):
        fitting.fit(fitting.declare(out_of_domain=0.2, metrics=()))


# The worker ----------------------------------------------------------------------------------


NONSENSE: dict[str, Any] = {
    "blank": torch.zeros(64),
    "noise": 16 * torch.rand(64, generator=torch.Generator().manual_seed(0)),
    "inverted": 16 - IMAGES[1500],
    "another size": torch.zeros(8),
}


@pytest.fixture
def looked_after(fitting: Fitting) -> Iterator[tuple[Fitting, ImputationRecord, Watching]]:
    """Digits, 900 of which are labelled: version 1 has no domain, version 2 has one. A worker."""
    fitting.insert(digits(900))
    register_digits(fitting)
    record = fitting.declare(max_epochs=2, lr=0.01, promote="always")
    assert fitting.fit(record)["domain"] is None
    change = fitting.imputations.documents.update_one
    change({"_id": record.id}, {"$set": {"spec.out_of_domain": 0.02, "spec.max_epochs": 3}})
    record = fitting.imputations.get("docs", record.name)
    fitting.fit(record)
    watching = Watching(fitting.database)
    with watching.running():
        until(lambda: watching.status(record.name) == "watching", what="the worker", seconds=60)
        yield fitting, record, watching


def test_a_worker_fills_digits_and_turns_nonsense_away(
    looked_after: tuple[Fitting, ImputationRecord, Watching],
) -> None:
    fitting, record, watching = looked_after
    docs = fitting.docs

    def counted() -> dict[str, int]:
        live = fitting.imputations.get("docs", record.name)
        counts = count_states(fitting.database, live)
        assert sum(counts.values()) == docs.count_documents({})
        return counts

    def in_state(state: str) -> dict[Any, dict[str, Any]]:
        live = fitting.imputations.get("docs", record.name)
        rows = States(fitting.database, live).page(state, [], 1000)["documents"]
        return {row["document"]: row for row in rows}

    def settled(**wanted: int) -> dict[str, int]:
        return until(
            lambda: counts if (counts := counted()).items() >= wanted.items() else None,
            what=f"the counts {wanted}",
            seconds=30,
        )

    ordinary = {1000 + i: IMAGES[1000 + i] for i in range(300)}
    insert_inputs(fitting, ordinary | NONSENSE)
    counts = settled(pending=0)
    assert counts["given"] == 900 and counts["failed"] == 0
    assert counts["filled"] >= 285 and counts["filled"] + counts["out_of_domain"] == 304
    rows = in_state("out_of_domain")
    assert set(rows) >= set(NONSENSE)
    found = domain_of(fitting, 3)
    assert found is not None
    for id, row in rows.items():
        assert row["threshold"] == found.threshold and row["version"] == 2
        if id == "another size":
            assert "distance" not in row
        else:
            assert row["distance"] > found.threshold
            assert row["distance"] == pytest.approx(
                float(found.distances({**ordinary, **NONSENSE}[id][None].double())), rel=1e-6
            )
        assert "y" not in watching.document(id)
    tried = watching.failures(state="out_of_domain")["blank"]
    assert tried["attempts"] == 0 and tried["error"] is None

    # A value that is there stays where its input moves out of the domain, and is stale.
    mine = next(id for id in ordinary if id not in rows)
    blank = codec.encode_document({"x": NONSENSE["blank"]})
    before = watching.document(mine)["y"]
    docs.update_one({"_id": mine}, {"$set": blank})
    until(lambda: mine in watching.failures(state="out_of_domain"), what="the moved input")
    assert watching.document(mine)["y"] == before and mine in in_state("stale")

    # Another input is another try, and so is another version.
    docs.update_one({"_id": "noise"}, {"$set": codec.encode_document({"x": ordinary[mine]})})
    until(lambda: watching.document("noise").get("y") == before, what="the mended document")
    fitting.imputations.activate("docs", record.name, 1, by="test", reason="back")
    counts = settled(out_of_domain=0, pending=0)
    assert {"blank", "inverted"} <= set(in_state("filled"))
    assert set(in_state("failed")) | set(in_state("pending")) <= {"another size"}
    # What version 1 filled stays under version 2, as it does with a value that was unsure.
    fitting.imputations.activate("docs", record.name, 2, by="test", reason="again")
    insert_inputs(fitting, {"late": NONSENSE["blank"]})
    until(lambda: "late" in in_state("out_of_domain"), what="the late one")
    assert {"blank", "inverted"} <= set(in_state("filled"))


# Side by side --------------------------------------------------------------------------------


class Unsure(torch.nn.Module):
    """Says which of two numbers is larger; None where they are the same, not sure where nearly."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[1.0], [-1.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight

    def postprocess(self, row: torch.Tensor) -> str | None:
        return None if float(row) == 0 else "first" if float(row) > 0 else "second"

    def confidence(self, row: torch.Tensor) -> float:
        return 0.4 if 0 < abs(float(row)) < 0.1 else 0.9


def test_never_tried_withheld_computed_null_and_out_of_domain_are_told_apart(
    database: Database[Any],
) -> None:
    watching = Watching(database)
    watching.live(Unsure(), min_confidence=0.5, out_of_domain=0.1)
    rows = np.random.default_rng(0).normal(size=(200, 2))
    domain = fit_domain(Table(rows[:150]), [Table(rows[150:])], 0.1, 0)
    component = watching.registry.publish_weights(
        "docs", "imputation_model", 1, save(Unsure().state_dict()), {}, save(domain.tensors())
    )
    record = watching.promote("imputation", component, version=2)
    inputs = {"sure": [1.0, 0.0], "null": [0.5, 0.5], "unsure": [0.5, 0.45], "far": [90.0, 0.0]}
    watching.docs.insert_many({"_id": id, "x": x} for id, x in inputs.items())
    with watching.running():
        until(lambda: watching.status() == "watching", what="the scan")
    watching.docs.insert_one({"_id": "new", "x": [1.0, 0.0]})

    found = {each.document_id: each.shown() for each in States(database, record).walk({})}
    assert {id: row["state"] for id, row in found.items()} == {
        "sure": "filled",
        "null": "no_value",
        "unsure": "withheld",
        "far": "out_of_domain",
        "new": "pending",
    }
    assert all("y" not in watching.document(id) for id in inputs if id != "sure")
    assert "returned None" in found["null"]["error"]["message"]
    assert found["unsure"]["confidence"] == 0.4 and "distance" not in found["unsure"]
    assert found["far"]["distance"] > found["far"]["threshold"] == domain.threshold
    assert "confidence" not in found["far"] and math.isfinite(found["far"]["distance"])
    counts = count_states(database, record)
    assert sum(counts.values()) == 5 and counts["withheld"] == counts["out_of_domain"] == 1
