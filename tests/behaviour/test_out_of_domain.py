"""Documents whose input is unlike those of the training, on both transports."""

import pytest
import torch

from definitions import DIM, SETTINGS, documents, register
from superduper.errors import AlreadyExists, InvalidInput, SuperduperError
from superduper.predicting import inputs_of
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("worker")
NONSENSE = {"far": torch.full((DIM,), 60.0), "opposite": torch.tensor([30.0, -30.0] * (DIM // 2))}


@pytest.fixture(scope="module")
def guarded(worker, place):
    """400 labelled documents, 40 that are not, and nonsense; the imputation has settled."""
    docs = place.fresh()
    docs.insert_many(documents(440, 400))
    docs.insert_many({"_id": name, "x": x} for name, x in NONSENSE.items())
    register(docs)
    imputation = docs.create_imputation(**SETTINGS, out_of_domain=0.02)
    imputation.wait(timeout=120, progress=False)
    return docs, imputation


def test_nonsense_is_not_filled_and_counted(guarded):
    docs, imputation = guarded
    counts = imputation.counts()
    assert sum(counts.values()) == docs.count_documents({}) == 442
    assert counts["given"] == 400 and counts["pending"] == counts["failed"] == 0
    assert counts["out_of_domain"] == 442 - 400 - counts["filled"] < 8
    rows = {row["document"]: row for row in imputation.documents("out_of_domain")}
    assert set(rows) >= set(NONSENSE)
    assert all("y" not in docs.find_one({"_id": id}) for id in rows)
    assert all(row["distance"] > row["threshold"] > 0 for row in rows.values())
    listed = {row["document"]: row for row in imputation.failures()}
    assert listed["far"]["state"] == "out_of_domain" and listed["far"]["attempts"] == 0
    assert listed["far"]["distance"] == rows["far"]["distance"]


def test_its_story_tells_how_far_it_is(guarded):
    docs, imputation = guarded
    story = docs.explain("far", "y")
    assert story["state"] == "out_of_domain" and story["distance"] > story["threshold"]
    assert "unlike those" in story["why"] and story["version"] == imputation.version


def test_the_threshold_is_shown_with_the_version(guarded):
    docs, imputation = guarded
    shown = imputation.show()
    [version] = imputation.versions()
    assert shown["out_of_domain"] == 0.02
    assert shown["domain"] == version["domain"]
    assert shown["domain"]["calibrated_on"] >= 49
    far = next(r for r in imputation.documents("out_of_domain") if r["document"] == "far")
    assert far["threshold"] == shown["domain"]["threshold"]


def test_predictions_are_given_and_say_so(guarded):
    docs, imputation = guarded
    ordinary = docs.find_one(0)["x"]
    assert imputation.predict(NONSENSE["far"]) in ("cat", "dog")
    answer = imputation._predict(inputs_of([ordinary, NONSENSE["far"]]), None)
    assert len(answer["outputs"]) == 2 and set(answer["out_of_domain"]) == {"1"}
    preview = {row["document"]: row for row in imputation.preview(10)}
    assert preview["far"]["value"] in ("cat", "dog")
    assert preview["far"]["out_of_domain"]["distance"] > 1
    sure, far = imputation.predict_documents(ids=[0, "far"])
    assert "out_of_domain" not in sure and far["out_of_domain"] == preview["far"]["out_of_domain"]
    assert imputation.explain(NONSENSE["far"])["out_of_domain"] == far["out_of_domain"]
    _, later = imputation.predict_later([ordinary, NONSENSE["far"]]).rows(timeout=60)
    assert later["out_of_domain"] == far["out_of_domain"] == answer["out_of_domain"]["1"]


def test_a_person_and_another_input_have_it_tried_again(guarded):
    docs, imputation = guarded
    first = imputation.counts()
    assert imputation.retry_failures() >= 2
    until(lambda: imputation.counts() == first, what="the same end")
    ordinary = next(imputation.documents("filled"))["document"]
    docs.update_one({"_id": "far"}, {"$set": {"x": docs.find_one(ordinary)["x"]}})
    until(lambda: docs.find_one("far").get("y") == docs.find_one(ordinary)["y"], what="its value")
    docs.update_one({"_id": "far"}, {"$set": {"x": NONSENSE["far"]}})
    until(
        lambda: "far" in {row["document"] for row in imputation.failures()},
        what="the note that it moved",
    )
    assert docs.find_one("far")["y"] == docs.find_one(ordinary)["y"]
    assert "far" in {row["document"] for row in imputation.documents("stale")}
    docs.update_one({"_id": "far"}, {"$unset": {"y": ""}})
    until(lambda: imputation.counts() == first, what="the blank again")


def test_it_is_refused_where_nothing_is_trained_and_where_there_is_too_little(docs):
    docs.insert_many(documents(60, 60))
    register(docs)
    untrained = {"model": "my_model", "model_key": "x", "target_key": "y", "out_of_domain": 0.1}
    with pytest.raises(InvalidInput, match="without a loss"):
        docs.create_imputation(**untrained)
    with pytest.raises(InvalidInput, match="out_of_domain"):
        docs.create_imputation(**SETTINGS, out_of_domain=1.5)
    imputation = docs.create_imputation(**SETTINGS, out_of_domain=0.01)
    with pytest.raises(SuperduperError, match=r"at least 99 documents .* there are \d+"):
        imputation.wait(timeout=120, progress=False)
    assert imputation.status == "failed"


def test_what_was_declared_before_the_setting_was_known_is_the_same_still(docs, place):
    docs.insert_one({"text": "abc"})
    docs.create_model("length", len)
    settings = {"model": "length", "model_key": "text", "target_key": "n", "watcher": False}
    first = docs.create_imputation(**settings)
    place.database["superduper.imputations"].update_one(
        {"collection": docs.name}, {"$unset": {"spec.out_of_domain": ""}}
    )
    assert docs.create_imputation(**settings).name == first.name
    with pytest.raises(AlreadyExists, match="other settings"):
        docs.create_imputation(**{**settings, "min_confidence": 0.5})
