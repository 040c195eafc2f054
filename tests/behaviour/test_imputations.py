"""The main job on both transports: declare, train, fill, correct, undo; and what goes wrong."""

import re

import pytest
import torch

from definitions import DIM, LABELS, SETTINGS, MyModel, MyTarget, documents, register
from superduper.errors import AlreadyExists, InvalidInput, NotFound, SuperduperError
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def shop(docs):
    """300 documents, 200 of them labelled, and the registered parts of seed 000."""
    docs.insert_many(documents(300, 200))
    register(docs)
    return docs


@pytest.fixture(scope="module")
def trained(worker, place):
    """Such a collection, its imputation trained and all that was missing filled."""
    docs = place.fresh()
    docs.insert_many(documents(300, 200))
    register(docs)
    imputation = docs.create_imputation(**SETTINGS)
    assert imputation.wait(timeout=120, progress=False) is imputation
    return docs, imputation


def test_the_example_of_the_first_seed(trained):
    docs, imputation = trained
    assert imputation.name == "y_from_x"
    assert imputation.status == "watching"
    found = docs.find({"_id": {"$gte": 200, "$lt": 245}})
    assert sum(d["y"] == LABELS[d["_id"] % 2] for d in found) >= 43
    filled = docs.find_one(244)
    assert filled["_fill"]["y"]["imputation"] == "y_from_x"
    assert filled["_fill"]["y"]["version"] == 1
    counts = imputation.counts()
    assert sum(counts.values()) == docs.count_documents({})
    assert counts["given"] >= 200 and counts["filled"] >= 90 and counts["pending"] == 0
    scan = imputation.show()["scan"]
    assert scan["seen"] >= 90 and (scan["left"], scan["eta_seconds"], scan["workers"]) == (
        0,
        None,
        0,
    )
    assert "watching" in repr(imputation) and "accuracy" in repr(imputation)
    given = docs.find_one(3)
    assert set(given) == {"_id", "x", "y"} and given["y"] == "dog"


def test_documents_are_listed_by_state(trained):
    docs, imputation = trained
    counts = imputation.counts()
    for state in ("filled", "given", "pending"):
        rows = list(imputation.documents(state, page=40))
        assert len({row["document"] for row in rows}) == len(rows) == counts[state]
        assert all(row["state"] == state for row in rows)
    with pytest.raises(InvalidInput, match="without_input"):
        list(imputation.documents("nowhere"))


def test_a_value_tells_its_whole_story(trained):
    docs, imputation = trained
    story = docs.explain(244, "y")
    assert (story["state"], story["imputation"], story["version"]) == ("filled", "y_from_x", 1)
    assert story["value"] == docs.find_one(244)["y"]
    assert story["derived"]["identical"] is True and story["input"]["same"] is True
    assert story["run"]["metrics"]["accuracy"] > 0.9 and story["run"]["data"]["train"]["hash"]
    assert "class MyModel" in story["model"]["source"] and story["model"]["registered_by"]
    assert story["promoted"][0]["by"] and story["promoted"][0]["reason"] == "the first version"
    assert docs.explain(3, "y")["state"] == "given" and "person" in docs.explain(3, "y")["why"]
    with pytest.raises(NotFound, match="'nowhere'"):
        docs.explain("nowhere", "y")
    with pytest.raises(NotFound, match="fill y"):
        docs.explain(244, "x")


def test_later_inserts_are_filled_whoever_makes_them(trained, place):
    docs, _ = trained
    docs.insert_one({"_id": "ours", "x": torch.full((DIM,), 3.0)})
    place.database[docs.name].insert_one({"_id": "plain", "x": [0.0] * DIM})
    until(lambda: "y" in docs.find_one("ours") and "y" in docs.find_one("plain"), what="both fills")
    assert docs.find_one("ours")["y"] == "dog"
    assert docs.find_one("plain")["y"] == "cat"


def test_a_persons_value_is_never_overwritten(trained, place):
    docs, imputation = trained
    given = imputation.counts()["given"]
    place.database[docs.name].update_one({"_id": 250}, {"$set": {"y": "mouse"}})
    until(lambda: "y" not in docs.find_one(250).get("_fill", {}), what="the correction to be seen")
    docs.update_one({"_id": 250}, {"$set": {"x": torch.zeros(DIM)}})
    docs.insert_one({"_id": "later", "x": torch.zeros(DIM)})
    until(lambda: "y" in docs.find_one("later"), what="a later fill")
    assert docs.find_one(250)["y"] == "mouse"
    assert imputation.counts()["given"] == given + 1


def test_a_changed_input_is_filled_anew(trained):
    docs, _ = trained
    assert docs.find_one(252)["y"] == "cat"
    docs.update_one({"_id": 252}, {"$set": {"x": torch.full((DIM,), 3.0)}})
    until(lambda: docs.find_one(252)["y"] == "dog", what="the new value")


def test_predictions_come_from_the_trained_model(trained):
    docs, imputation = trained
    inputs = [torch.zeros(DIM), torch.full((DIM,), 3.0)]
    assert docs.predict("my_model", inputs) == ["cat", "dog"]
    assert imputation.predict(inputs) == ["cat", "dog"]
    assert docs.show("model", "my_model")["origin"]["imputation"].endswith("y_from_x")


def test_jobs_runs_and_highscores_tell_of_the_fit(trained):
    docs, _ = trained
    assert any(job["args"]["collection"] == docs.name for job in docs.jobs())
    run = next(run for run in docs.runs() if run["imputation"].endswith("y_from_x"))
    assert run["status"] == "succeeded" and run["metrics"]["accuracy"] > 0.9
    assert sum(run["data"][fold]["n"] for fold in ("train", "valid", "test")) == 200
    assert docs.highscores("accuracy")[0]["value"] == run["metrics"]["accuracy"]
    whole = docs.run(run["id"])
    assert [row["epoch"] for row in whole["history"]] == list(range(len(whole["history"])))
    steps = [row["step"] for row in whole["steps"]]
    assert steps == list(range(1, whole["history"][-1]["step"] + 1))
    assert all(row["loss"] > 0 for row in whole["steps"]) and whole["seconds"] > 0
    for key in ("initial_hash", "final_hash", "seed", "device", "versions", "best", "settings"):
        assert whole[key] not in (None, {}), key
    assert {"history", "steps"}.isdisjoint(run) and whole["parent"] is None
    with pytest.raises(NotFound, match="no run 'nothing'"):
        docs.run("nothing")


def test_waiting_writes_plain_lines_where_there_is_no_terminal(trained, capfd):
    docs, imputation = trained
    imputation.refit().wait(timeout=120)
    assert re.search(r"^fit y_from_x: \d+( of \d+)? steps$", capfd.readouterr().err, re.M)


def test_the_same_declaration_again_changes_nothing(trained):
    docs, imputation = trained
    again = docs.create_imputation(**SETTINGS)
    assert again.name == imputation.name and again.version == 1
    with pytest.raises(AlreadyExists, match="y_from_x"):
        docs.create_imputation(**{**SETTINGS, "lr": 0.1})


def test_one_field_is_filled_by_one_imputation(trained):
    docs, _ = trained
    with pytest.raises(InvalidInput, match="clashes"):
        docs.create_imputation("second", **SETTINGS)
    with pytest.raises(InvalidInput, match="clashes"):
        docs.create_watcher("third", model="my_model", key="x", target="y.inner")


@pytest.mark.parametrize(
    ("target_key", "reason"), [("_fold", "learns"), (["z", "z.inner"], "overlap"), ("_id", "_id")]
)
def test_fields_that_cannot_be_filled_are_refused(trained, target_key, reason):
    docs, _ = trained
    with pytest.raises(InvalidInput, match=reason):
        docs.create_imputation("another", model="my_model", model_key="x", target_key=target_key)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "nothing_such"}, "nothing_such"),
        ({"target": "nothing_such"}, "nothing_such"),
        ({"metrics": ["nothing_such"]}, "nothing_such"),
        ({"loss": "nothing_such"}, "nothing_such"),
        ({"target_key": "x"}, "itself"),
        ({"model_key": "nothing_such"}, "nothing_such"),
        ({"model_key": "$x"}, "model_key"),
        ({"target_key": "_fill.y"}, "target_key"),
        ({"target_key": "_id"}, "_id"),
        ({"target_key": "_id.part"}, "_id"),
        ({"precision": 0.95}, "precision"),
        ({"max_width": 1.0}, "max_width"),
        ({"refit_after": 10}, "refit_after"),
        ({"confidence": 0.8}, "confidence"),
        ({"metric": ["accuracy"]}, "metric: there is no such argument; is 'metrics' meant"),
        ({"watch": "f1"}, "f1"),
        ({"lr": -1.0}, "lr"),
        ({"epochs": 3}, "epochs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_declaration_is_refused_at_once(trained, change, reason):
    docs, _ = trained
    before = docs.list("imputation")
    with pytest.raises(SuperduperError, match=reason):
        docs.create_imputation("wrong", **{**SETTINGS, **change})
    assert docs.list("imputation") == before


def test_unknown_names_say_what_there_is(trained, docs):
    with pytest.raises(NotFound, match="none yet"):
        docs.imputation("nothing_such")
    with pytest.raises(NotFound, match="y_from_x"):
        trained[0].imputation("nothing_such")
    with pytest.raises(NotFound, match="my_model"):
        trained[0].predict("my_modell", 1)


def test_versions_promotion_rollback_and_revert(shop):
    imputation = shop.create_imputation(**SETTINGS, promote="always")
    imputation.wait(timeout=120, progress=False)
    imputation.refit().wait(timeout=120, progress=False)
    assert [row["version"] for row in imputation.versions()] == [2, 1]
    assert imputation.version == 2
    with pytest.raises(InvalidInput, match="force"):
        imputation.revert(2)
    assert imputation.revert(1, force=True) == 100
    assert shop.count_documents({"y": {"$exists": False}}) in range(101)
    imputation.rollback()
    assert imputation.version == 1
    imputation.promote(2)
    assert [row["version"] for row in imputation.history()][:3] == [2, 1, 2]
    imputation.wait(timeout=60, progress=False).rollback(refill=True)
    second = {"_fill.y.version": 2}
    until(lambda: shop.count_documents(second) == 0, what="the refill")
    assert imputation.version == 1 and shop.count_documents({"_fill.y.version": 1}) == 100
    imputation.pause()
    assert imputation.revert(1, force=True) == imputation.redo(1)
    for act in (imputation.promote, imputation.revert, imputation.redo):
        with pytest.raises(NotFound, match="no version 9"):
            act(9)


def test_corrections_are_counted_listed_and_learned_from(shop):
    imputation = shop.create_imputation(**SETTINGS, promote="never")
    imputation.wait(timeout=120, progress=False)
    before = shop.run(imputation.versions()[0]["run"])["data"]
    assert imputation.corrections() == [] and imputation.show()["corrections"] == 0
    blank = [each["_id"] for each in shop.find({"_fill.y.version": 1}, limit=2)]
    shop.update_many({"_id": {"$in": blank}}, {"$set": {"y": "dog, rather"}})
    shop.update_many({"_id": {"$in": blank}}, {"$set": {"y": "dog"}})
    until(lambda: imputation.show()["corrections"] == 2, what="both corrections")
    assert {row["document"] for row in imputation.corrections()} == set(blank)
    assert {row["field"] for row in imputation.corrections(1)} == {"y"}
    imputation.refit().wait(timeout=120, progress=False)
    after = shop.run(imputation.versions()[0]["run"])["data"]
    assert sum(each["n"] for each in after.values()) == 2 + sum(e["n"] for e in before.values())


def test_an_imputation_made_anew_goes_on_counting_versions(docs):
    docs.create_model("times", lambda n: n * 2)
    docs.insert_one({"_id": 1, "n": 4})
    docs.create_watcher("product", "times", "n", "m").wait(60, progress=False)
    docs.delete("imputation", "product")
    docs.create_model("times", lambda n: n * 3)
    docs.insert_one({"_id": 2, "n": 4})
    again = docs.create_watcher("product", "times", "n", "m").wait(60, progress=False)
    assert {each["_id"]: each["m"] for each in docs.find()} == {1: 8, 2: 12}
    assert [row["version"] for row in again.versions()] == [2, 1]
    assert {docs.explain(id, "m")["version"] for id in (1, 2)} == {1, 2}
    assert all(docs.explain(id, "m")["derived"]["identical"] for id in (1, 2))


def test_a_version_of_an_earlier_declaration_keeps_its_model(docs):
    docs.create_model("double", lambda n: n * 2)
    docs.create_model("treble", lambda n: n * 3)
    docs.insert_one({"_id": 1, "n": 4})
    docs.create_watcher("product", "double", "n", "m").wait(60, progress=False)
    docs.delete("imputation", "product")
    again = docs.create_watcher("product", "treble", "n", "m").wait(60, progress=False)
    story = docs.explain(1, "m")
    assert (story["version"], story["model"]["name"]) == (1, "double")
    assert story["derived"]["identical"]
    with pytest.raises(InvalidInput, match="earlier declaration, with the model 'double'"):
        again.promote(1)
    assert again.version == 2


def test_a_value_is_explained_by_the_imputation_that_wrote_it(docs):
    docs.create_model("double", lambda n: n * 2)
    docs.insert_one({"_id": 1, "n": 4})
    only_asked = {"model": "double", "model_key": "n", "target_key": "m", "watcher": False}
    docs.create_imputation("before", **only_asked)
    docs.create_watcher("doubles", "double", "n", target="m").wait(60, progress=False)
    story = docs.explain(1, "m")
    assert (story["imputation"], story["state"], story["value"]) == ("doubles", "filled", 8)


def test_what_ends_a_fit_arrives_as_the_error_that_it_was(shop):
    imputation = shop.create_imputation(**SETTINGS, optimizer="adamm")
    with pytest.raises(InvalidInput, match="no optimizer 'adamm'.*adamw"):
        imputation.wait(timeout=120, progress=False)


def test_objective_is_another_word_for_loss(shop):
    settings = {**SETTINGS, "objective": SETTINGS["loss"], "watcher": False, "max_epochs": 1}
    del settings["loss"]
    other = shop.create_imputation("other-name", **settings).wait(timeout=120, progress=False)
    assert other.show()["loss"] == SETTINGS["loss"]
    with pytest.raises(InvalidInput, match="objective"):
        shop.create_imputation("third", **settings, loss="classification_loss")


def test_a_failed_fit_tells_why(docs):
    docs.insert_many(documents(60, 60))
    register(docs)
    docs.create_function("broken_target", MyTarget(["nothing", "known"]))
    imputation = docs.create_imputation(**{**SETTINGS, "target": "broken_target"})
    with pytest.raises(SuperduperError, match="cat|dog"):
        imputation.wait(timeout=120, progress=False)
    assert imputation.status == "failed"
    failed = imputation.versions()[0]
    assert failed["status"] == "failed"
    with pytest.raises(SuperduperError, match="failed|no version"):
        imputation.promote(failed["version"] or 1)
    assert imputation.version is None


def test_a_model_of_the_wrong_width_fails_the_fit_with_a_reason(docs):
    docs.insert_many(documents(60, 60))
    register(docs)
    docs.create_model("wide", MyModel(LABELS, DIM + 1))
    imputation = docs.create_imputation(**{**SETTINGS, "model": "wide"})
    with pytest.raises(SuperduperError, match="shape|mat1|size"):
        imputation.wait(timeout=120, progress=False)


def test_a_regression_with_a_plain_metric(docs):
    docs.insert_many([{"_id": i, "x": [float(i), 1.0], "y": 2.0 * i + 1} for i in range(60)])
    docs.insert_one({"_id": 60, "x": [60.0, 1.0]})

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x):
            return self.layer(x)[:, 0]

    docs.create_model("line", Line())
    docs.create_loss("squares", torch.nn.MSELoss())
    docs.create_metric("off", lambda predicted, true: abs(predicted - true))
    docs.create_imputation(
        model="line",
        model_key="x",
        target_key="y",
        loss="squares",
        metrics=["off"],
        lr=0.5,
        max_epochs=300,
        patience=300,
        seed=1,
    ).wait(timeout=120, progress=False)
    assert docs.find_one(60)["y"] == pytest.approx(121, abs=2)
