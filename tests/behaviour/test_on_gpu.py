"""The main job on a GPU, on both transports."""

import pytest
import torch

from definitions import LABELS, SETTINGS, documents, register
from tests.waiting import until

pytestmark = [
    pytest.mark.usefixtures("worker"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


class Table(torch.nn.Module):
    """Looks a number up in a table of ten."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)

    def forward(self, x):
        return self.table(x)

    def postprocess(self, row):
        return float(row.sum())


def test_an_imputation_is_fitted_filled_and_explained(docs):
    docs.insert_many(documents(300, 200))
    register(docs)
    imputation = docs.create_imputation(**SETTINGS).wait(timeout=120, progress=False)
    story = docs.explain(244, "y")
    assert story["run"]["device"] == torch.cuda.get_device_name()
    found = docs.find({"_id": {"$gte": 200, "$lt": 245}})
    assert sum(d["y"] == LABELS[d["_id"] % 2] for d in found) >= 43
    stories = [docs.explain(number, "y") for number in range(200, 300)]
    assert all(each["derived"]["identical"] for each in stories if each["state"] == "filled")
    assert docs.predict("my_model", [docs.find_one(3)["x"]])
    assert imputation.counts()["failed"] == 0


def test_a_document_that_loses_the_gpu_fails_alone(docs):
    docs.insert_many([{"_id": n, "x": 10 if n == 77 else n % 10} for n in range(200)])
    docs.create_model("table", Table())
    imputation = docs.create_watcher("sums", model="table", key="x", target="sum")
    until(
        lambda: docs.count_documents({"sum": {"$exists": True}}) == 199,
        what="the others",
        seconds=120,
    )
    until(
        lambda: imputation.failures() and imputation.failures()[0]["state"] == "dead",
        what="the end of its attempts",
        seconds=120,
    )
    (failure,) = imputation.failures()
    assert failure["document"] == 77 and "exit code 70" in str(failure["error"])
