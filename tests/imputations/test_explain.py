"""A value's passport is small, and from it the whole story and the very bits come back."""

from typing import Any

import bson
import pytest
import torch
from bson import ObjectId
from pymongo.database import Database
from watching import Watching

from superduper.errors import NotFound
from superduper.imputations import explain
from superduper.imputations.explain import Explainer
from superduper.imputations.hosting import open_hosts
from superduper.imputations.provenance import fill_record, value_hash
from superduper.store.forms import Forms
from superduper.training.runs import Runs
from tests.waiting import until

FILLS = 150


@pytest.mark.parametrize("value", [1, "x" * 100_000, [1.0] * 5_000], ids=["1", "text", "list"])
def test_a_passport_is_at_most_256_bytes(value: Any) -> None:
    passport = fill_record(
        imputation="n" * 63,
        version=2**40,
        at=2**41,
        inputs="f" * 32,
        value=value,
        confidence=0.123456789,
    )
    assert len(bson.encode(passport)) <= 256


class Regression(torch.nn.Module):
    """Numbers whose last bits depend on how many rows are computed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)
        )

    def forward(self, x: Any) -> Any:
        return self.layers(x)[:, 0]


def note_run(watching: Watching, record: Any) -> None:
    """What a fit would have left behind."""
    runs = Runs(watching.database)
    assert record.active_component is not None
    model, version = record.active_component
    of = {"collection": "docs", "imputation": record.id, "settings": {"model": model}}
    run = runs.begin({**of, "job": None, "seed": 7})
    runs.finish(run, "succeeded", version=1, model_version=version)


class Faster(Regression):
    """Much faster with 16 bits, on any processor."""

    def forward(self, x: Any) -> Any:
        for _ in range(300 if x.dtype == torch.float32 else 0):
            x = x + x.cos() * 0
        return super().forward(x)


def test_a_value_comes_again_though_a_faster_form_serves(database: Database[Any]) -> None:
    watching, forms = Watching(database), Forms(database)
    torch.manual_seed(0)
    x = torch.randn(64).tolist()
    watching.docs.insert_one({"_id": 1, "x": x})
    record = watching.live(Faster())
    note_run(watching, record)
    assert record.active_component is not None
    model = record.active_component[0]
    wish = {"form": "bf16", "tolerance": 0.05, "agreement": None}
    forms.set("docs", model, wish, by="test", inputs=[x])
    with watching.running():
        until(lambda: watching.docs.count_documents({"y": {"$exists": True}}) == 1)
    filled = (watching.docs.find_one({"_id": 1}) or {})["y"]
    hosts = open_hosts(watching.registry, forms.of)
    try:
        component = watching.registry.get("docs", "model", model)
        served = hosts.predict(component, [x])[0]["value"]
        assert forms.told(component)["report"]["serves"] == "bf16"
        assert served != filled and served == pytest.approx(filled, abs=0.05)
        assert hosts.predict_plainly(component, [x])[0]["value"] == filled
        explainer = Explainer(database, watching.registry, hosts.predict_plainly)
        assert explainer.explain("docs", 1, "y")["derived"] == {"identical": True, "batch": 1}
    finally:
        hosts.close()


def test_a_value_that_never_comes_again_is_looked_for_for_a_while(
    database: Database[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = Watching(database)
    watching.docs.insert_one({"_id": 1, "x": 1})
    record = watching.live(lambda x: x)
    note_run(watching, record)
    with watching.running():
        until(lambda: "y" in watching.document(1), what="a fill")
    asked: list[int] = []

    def by_chance(component: Any, values: Any, timeout: Any = None) -> list[dict[str, Any]]:
        asked.append(len(values))
        return [{"value": str(ObjectId())} for _ in values]

    explainer = Explainer(database, watching.registry, by_chance)
    assert explainer.explain("docs", 1, "y")["derived"]["identical"] is False
    assert len(asked) == 256
    asked.clear()
    monkeypatch.setattr(explain, "SECONDS", 0.0)
    derived = explainer.explain("docs", 1, "y")["derived"]
    assert derived["identical"] is None and "within 0 s" in derived["why"] and asked == [1]


def test_every_value_comes_again_to_the_bit(database: Database[Any]) -> None:
    watching = Watching(database)
    torch.manual_seed(0)
    inputs = torch.randn(FILLS, 64).tolist()
    watching.docs.insert_many({"_id": each, "x": x} for each, x in enumerate(inputs))
    record = watching.live(Regression())
    note_run(watching, record)
    with watching.running():
        until(lambda: watching.docs.count_documents({"y": {"$exists": True}}) == FILLS)
    hosts = open_hosts(watching.registry)
    try:
        explainer = Explainer(database, watching.registry, hosts.predict)
        stories = [explainer.explain("docs", each, "y") for each in range(FILLS)]
        assert [story["derived"]["identical"] for story in stories] == [True] * FILLS
        assert len({story["derived"]["batch"] for story in stories}) > 1
        story = stories[0]
        assert story["run"]["seed"] == 7 and story["promoted"][0]["by"] == "test"
        assert "class Regression" in story["model"]["source"]

        watching.docs.update_one({"_id": 0}, {"$set": {"x": [0.0] * 64}})
        watching.docs.update_one({"_id": 1}, {"$set": {"y": 1.0}})
        changed, corrected = (explainer.explain("docs", each, "y") for each in (0, 1))
        assert changed["state"] == "stale" and changed["input"]["same"] is False
        assert changed["derived"]["identical"] is None and "input" in changed["derived"]["why"]
        assert corrected["state"] == "given" and "derived" not in corrected

        forged = {"y": 0.5, "_fill.y.value": value_hash(0.5)}
        watching.docs.update_one({"_id": 2}, {"$set": forged})
        derived = explainer.explain("docs", 2, "y")["derived"]
        assert derived["identical"] is False and derived["value"] != 0.5

        watching.imputations.delete(record)
        with pytest.raises(NotFound, match="by version 1 of .*'imputation', which was deleted"):
            explainer.explain("docs", 3, "y")
    finally:
        hosts.close()
