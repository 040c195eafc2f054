"""Fields that models fill as they are, on both transports; nothing is trained for it."""

import time

import pytest

from superduper.errors import InvalidInput, NotFound
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("worker")


def test_preview_writes_nothing(docs):
    docs.insert_many([{"_id": i, "n": i} for i in range(5)])
    docs.create_model("double", lambda n: n * 2)
    imputation = docs.create_imputation(
        model="double", model_key="n", target_key="m", watcher=False
    )
    assert imputation.status == "ready"
    assert [(row["document"], row["value"]) for row in imputation.preview(3)] == [
        (0, 0),
        (1, 2),
        (2, 4),
    ]
    assert docs.count_documents({"m": {"$exists": True}}) == 0
    assert imputation.counts()["pending"] == 5


def test_pause_and_resume(docs):
    docs.create_model("double", lambda n: n * 2)
    imputation = docs.create_watcher("doubles", model="double", key="n", target="m")
    assert imputation.pause().status == "paused"
    docs.insert_one({"_id": 1, "n": 4})
    imputation.resume().wait(timeout=60, progress=False)
    until(lambda: docs.find_one(1).get("m") == 8, what="what was missed")


def test_a_poison_document_is_listed_and_the_others_are_filled(docs):
    docs.insert_many([{"_id": i, "n": i} for i in range(40)])

    def reciprocal(n):
        return 60 / (n - 7)

    docs.create_model("reciprocal", reciprocal)
    imputation = docs.create_watcher("inverse", model="reciprocal", key="n", target="inverse")
    imputation.wait(timeout=60, progress=False)
    until(
        lambda: imputation.failures() and imputation.failures()[0]["state"] == "dead",
        what="the end",
    )
    (failure,) = imputation.failures()
    assert failure["document"] == 7 and "division" in str(failure["error"])
    assert docs.count_documents({"inverse": {"$exists": True}}) == 39
    docs.update_one({"_id": 7}, {"$set": {"n": 8}})
    until(lambda: docs.find_one(7).get("inverse") == 60, what="the mended document")
    assert imputation.counts()["failed"] == 0


def test_watchers_chain_through_features(docs):
    docs.insert_many([{"_id": i, "text": "abc"[: i + 1]} for i in range(3)])
    docs.create_model("length", len)
    docs.create_model("double", lambda n: n * 2)
    docs.create_watcher("lengths", model="length", key="text").wait(60, progress=False)
    docs.create_watcher("doubles", model="double", key="text", features={"text": "length"})
    until(
        lambda: docs.find_one(2).get("_outputs", {}).get("text", {}).get("double") == 6,
        what="the chained output",
    )
    docs.update_one({"_id": 2}, {"$set": {"text": "abcd"}})
    until(lambda: docs.find_one(2)["_outputs"]["text"]["double"] == 8, what="the refreshed chain")


def test_readers_of_fresh_values_get_no_other(docs):
    docs.create_model("double", lambda n: n * 2)
    watcher = docs.create_watcher("doubles", model="double", key="n", target="m")
    docs.insert_many([{"_id": i, "n": i} for i in range(3)])
    until(lambda: docs.count_documents({"m": {"$exists": True}}) == 3, what="the fills")
    watcher.pause()
    docs.update_one({"_id": 1}, {"$set": {"n": 7}})
    assert docs.find_one(1)["m"] == 2
    assert docs.find_one(1, fresh=True) == {"_id": 1, "n": 7}
    assert docs.find_one({"m": 2}, fresh=True) is None
    fresh = docs.find({}, ["m"], sort="_id", fresh=True)
    assert list(fresh) == [{"_id": 0, "m": 0}, {"_id": 1}, {"_id": 2, "m": 4}]
    watcher.resume()
    until(lambda: docs.find_one(1, fresh=True).get("m") == 14, what="the new value")


def test_an_imputation_is_deleted_while_it_fills(docs):
    docs.insert_many([{"_id": i, "n": i} for i in range(120)])

    def slowly(n):
        time.sleep(0.02)
        return n

    docs.create_model("slowly", slowly)
    filled = {"m": {"$exists": True}}
    imputation = docs.create_watcher("copy", model="slowly", key="n", target="m")
    until(lambda: docs.count_documents(filled) > 0, what="the first fills")
    imputation.delete()
    assert docs.list("imputation") == []
    with pytest.raises(NotFound, match="copy"):
        imputation.counts()
    again = docs.create_watcher("copy", model="slowly", key="n", target="m")
    again.wait(60, progress=False)
    until(lambda: docs.count_documents(filled) == 120, what="the others")
    assert all(each["m"] == each["n"] for each in docs.find())
    assert again.failures() == []


def test_a_view_is_refused(docs, place):
    docs.insert_one({"n": 1})
    name = f"{docs.name}_view"
    place.database.create_collection(name, viewOn=docs.name, pipeline=[])
    view = place.facade(name)
    view.create_model("same", lambda value: value)
    with pytest.raises(InvalidInput, match="is a view"):
        view.create_watcher("copy", model="same", key="n", target="m")
    assert view.list("imputation") == []


def test_a_circle_is_refused(docs):
    docs.create_model("same", lambda value: value)
    docs.create_watcher("ab", model="same", key="a", target="b")
    docs.create_watcher("bc", model="same", key="b", target="c")
    with pytest.raises(InvalidInput, match="circle"):
        docs.create_watcher("ca", model="same", key="c", target="a")


def test_a_dotted_target_and_several_inputs(docs):
    docs.insert_many([{"_id": i, "a": {"b": i}, "c": 2} for i in range(5)])
    docs.create_model("product", lambda fields: fields["a.b"] * fields["c"])
    docs.create_watcher("products", model="product", key=["a.b", "c"], target="out.p")
    until(lambda: docs.count_documents({"out.p": {"$exists": True}}) == 5, what="all products")
    assert docs.find_one(4)["out"] == {"p": 8}
