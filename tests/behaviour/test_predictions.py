"""What can be asked of a model, on both transports: of documents, and in detail."""

import numpy as np
import pytest
import torch

from definitions import DIM, LABELS, MyModel, documents
from superduper.errors import InvalidInput, NotFound, NotReady, UserCodeError


class Stretch(torch.nn.Module):
    """Twice a number, said aloud; refuses negative ones and cannot work with 13."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor([2.0]))

    def preprocess(self, number: float) -> torch.Tensor:
        if number < 0:
            raise ValueError("too small")
        return torch.tensor([float(number)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 13).any()):
            raise ArithmeticError("unlucky")
        return x * self.factor

    def postprocess(self, row: torch.Tensor) -> str:
        return f"about {row.item():g}"

    def confidence(self, row: torch.Tensor) -> float:
        return 0.75


@pytest.fixture
def stretch(docs):
    docs.create_model("stretch", Stretch())
    return docs.model("stretch")


def test_documents_by_id_come_in_the_order_of_the_ids(docs, native, stretch):
    docs.insert_many([{"_id": 1, "n": 1}, {"_id": "b", "n": -5}, {"_id": 3, "m": 1}])
    docs.insert_one({"_id": {"a": 1}, "n": 2})
    assert stretch.predict_documents(ids=[{"a": 1}], key="n")[0]["document"] == {"a": 1}

    rows = stretch.predict_documents(ids=[3, "b", 1, 9, 1.0], key="n")

    assert [row["document"] for row in rows] == [3, "b", 1, 9, 1]
    assert [row["value"] for row in rows] == [None, None, "about 2", None, "about 2"]
    assert [row["confidence"] for row in rows] == [None, None, 0.75, None, 0.75]
    assert rows[0]["error"] == "it has no n"
    assert rows[1]["error"] == "too small"
    assert rows[3]["error"] == "there is no document of this _id"
    assert native.find_one({"_id": 1}) == {"_id": 1, "n": 1}  # nothing is written


def test_documents_by_filter_come_in_the_order_of_their_ids(docs, stretch):
    docs.insert_many(
        [{"_id": number, "n": number, "deep": {"n": 50}} for number in range(9, 0, -1)]
    )

    rows = stretch.predict_documents({"n": {"$gt": 3}}, key="n", limit=3)
    assert [(row["document"], row["value"]) for row in rows] == [
        (4, "about 8"),
        (5, "about 10"),
        (6, "about 12"),
    ]
    assert stretch.predict_documents(key="deep.n", limit=1)[0]["value"] == "about 100"
    assert stretch.predict_documents({"n": 0}, key="n") == []


def test_several_fields_and_whole_documents(docs):
    docs.create_model("names", lambda document: sorted(document))
    docs.insert_one({"_id": 1, "a": 1, "b": [1.5]})
    names = docs.model("names")
    assert names.predict_documents(ids=[1], key=["b", "a"])[0]["value"] == ["a", "b"]
    assert names.predict_documents(ids=[1], key="_base")[0]["value"] == ["a", "b"]
    assert names.predict_documents(ids=[1], key=["b", "c"])[0]["error"] == "it has no c"


def test_what_is_asked_wrongly_is_refused(docs, stretch):
    with pytest.raises(InvalidInput, match="either ids or a filter"):
        stretch.predict_documents({"n": 1}, ids=[1], key="n")
    with pytest.raises(InvalidInput, match="key: name the field"):
        stretch.predict_documents({"n": 1})
    with pytest.raises(NotFound, match="no version 7"):
        stretch.predict_documents(key="n", version=7)
    with pytest.raises(NotFound, match="'strech'; did you mean 'stretch'"):
        docs.model("strech").explain(1)


def test_one_prediction_explained(stretch):
    told = stretch.explain(3)

    assert told["given"]["shape"] == [1] and told["given"]["dtype"] == "float32"
    assert np.asarray(told["given"]["value"]).tolist() == [3.0]
    assert np.asarray(told["returned"]["value"]).tolist() == [6.0]
    assert told["value"] == "about 6" and told["confidence"] == 0.75
    assert told["model"] == "stretch" and told["version"] == 1
    assert told["seconds"].keys() == {"preprocess", "forward", "postprocess"}
    assert stretch.explain(3)["value"] == stretch.predict(3)


@pytest.mark.parametrize(
    ("value", "stage", "kind", "known"),
    [(-1, "preprocess", "ValueError", set()), (13, "forward", "ArithmeticError", {"given"})],
)
def test_a_failure_is_told_with_its_stage(stretch, value, stage, kind, known):
    told = stretch.explain(value)
    assert told["failed_at"] == stage
    assert told["error"]["type"] == kind
    assert told.keys() & {"given", "returned", "value"} == known


def test_a_version_is_explained_as_it_was(docs):
    docs.create_model("line", lambda n: n + 1)
    docs.create_model("line", lambda n: n + 2)
    line = docs.model("line")
    assert line.explain(1)["value"] == 3
    assert line.explain(1, version=1)["value"] == 2
    assert line.predict(1, version=1) == 2
    assert line.predict_documents({}, key="n", version=1) == []


class Count(torch.nn.Module):
    """Yields the numbers up to its input; 13 is one too many."""

    def forward(self, x: torch.Tensor):
        for number in range(int(x.max())):
            if number == 13:
                raise ArithmeticError("unlucky")
            yield torch.full((len(x), 2), float(number), requires_grad=torch.is_grad_enabled())

    def postprocess(self, row: torch.Tensor) -> str:
        assert not row.requires_grad
        return f"{row[0].item():g}"


def tell(text: str):
    """A letter at a time."""
    import os

    for letter in text:
        if letter == "!":
            os._exit(1)
        yield letter


class Spell:
    """Says its output a letter at a time."""

    def __call__(self, batch):
        return batch

    def preprocess(self, number):
        return torch.tensor([float(number)])

    def postprocess(self, row):
        yield from f"{row.item():g}"


def test_a_prediction_comes_piece_by_piece(docs):
    docs.create_model("count", Count())
    docs.create_model("tell", tell)
    docs.create_model("spell", Spell())
    count = docs.model("count")

    assert list(count.stream([3.0])) == ["0", "1", "2"]
    assert list(count.stream([0.0])) == []
    assert list(docs.model("tell").stream("abc")) == ["a", "b", "c"]
    assert list(docs.model("spell").stream(2.5)) == ["2", ".", "5"]
    # At once, the output is the list of all pieces, row by row.
    assert count.predict([[2.0], [3.0]]) == [["0", "1", "2"], ["0", "1", "2"]]
    assert docs.model("tell").predict(["ab", "c"]) == [["a", "b"], ["c"]]
    assert docs.model("spell").predict(25) == ["2", "5"]


def test_pieces_of_several_readers_and_predictions_take_turns(docs):
    docs.create_model("tell", tell)
    tells = docs.model("tell")
    first, second = tells.stream("abc"), tells.stream("xyz")
    assert [next(first), next(second), next(first)] == ["a", "x", "b"]
    assert tells.predict("ab") == ["a", "b"]
    first.close()
    assert list(second) == ["y", "z"]


def test_a_model_that_does_not_yield_gives_one_piece(docs, stretch):
    assert list(stretch.stream(3)) == ["about 6"]
    with pytest.raises(UserCodeError, match="too small"):
        list(stretch.stream(-1))
    with pytest.raises(NotFound):
        list(docs.model("nothing").stream(1))
    with pytest.raises(NotFound, match="no version 5"):
        list(stretch.stream(1, version=5))


def test_what_fails_on_the_way_says_so_after_what_came_before(docs):
    docs.create_model("count", Count())
    docs.create_model("tell", tell)
    pieces = docs.model("count").stream([20.0])
    with pytest.raises(UserCodeError, match="'count' failed: unlucky"):
        for expected, piece in enumerate(pieces):
            assert piece == str(expected)
    assert expected == 12
    pieces = docs.model("tell").stream("a!b")
    assert next(pieces) == "a"
    with pytest.raises(NotReady, match="exit code 1"):
        next(pieces)
    assert list(docs.model("tell").stream("ab")) == ["a", "b"]


def test_a_traffic_policy_is_set_and_shown(docs, stretch):
    docs.create_model("stretch", lambda n: n)
    assert stretch.traffic()["live"] == 2 and stretch.traffic()["canary"] is None

    told = stretch.set_traffic(canary={"version": 1, "share": 0.5})
    assert told["canary"] == {"version": 1, "share": 0.5} and told["shadow"] is None
    assert told == stretch.traffic()
    assert set(told["counts"].values()) == {0} and told["set_by"]
    told = stretch.set_traffic(shadow={"version": 1, "tolerance": 0.1})
    assert told["canary"] is None
    assert told["shadow"] == {"version": 1, "share": 1.0, "tolerance": 0.1}
    with pytest.raises(NotFound, match="no version 9"):
        stretch.set_traffic(canary={"version": 9, "share": 0.5})
    assert stretch.set_traffic()["shadow"] is None


@pytest.mark.usefixtures("worker")
def test_many_predictions_are_fetched_later(docs, stretch):
    job = stretch.predict_later([float(n) for n in range(-1, 600)])
    rows = list(job.rows(timeout=60))

    assert len(rows) == 601 and job.status == "succeeded"
    assert rows[0] == {"error": "too small"}
    assert rows[14] == {"error": "unlucky"}
    assert rows[600] == {"value": "about 1198", "confidence": 0.75}
    [shown] = [row for row in docs.jobs() if row["id"] == job.id]
    assert shown["kind"] == "predict" and shown["args"]["rows"] == 601


@pytest.mark.usefixtures("worker")
def test_the_documents_of_a_filter_are_predicted_later_by_one_version(docs, stretch):
    docs.insert_many([{"_id": n, "n": n} for n in range(300)] + [{"_id": "x", "n": None}])
    job = stretch.predict_later(filter={"_id": {"$ne": 7}}, key="n", version=1)
    docs.create_model("stretch", lambda n: n)

    rows = list(job.rows(timeout=60))
    assert [row["document"] for row in rows] == [*range(7), *range(8, 300), "x"]
    assert rows[250]["value"] == "about 502" and rows[12] == {"document": 13, "error": "unlucky"}
    assert "value" not in rows[-1] and rows[-1]["error"]


@pytest.mark.usefixtures("worker")
def test_a_job_of_predictions_that_cannot_be_run(docs, stretch):
    with pytest.raises(InvalidInput, match="either inputs or a filter"):
        stretch.predict_later()
    with pytest.raises(InvalidInput, match="key: name the field"):
        stretch.predict_later(filter={})
    job = stretch.predict_later([1.0], version=1)
    assert [row["value"] for row in job.rows(timeout=60)] == ["about 2"]
    job.cancel()  # too late: an ended job stays as it is
    assert job.status == "succeeded"


@pytest.mark.usefixtures("worker")
def test_an_imputation_knows_its_fields(docs):
    docs.insert_many([{**each, "hint": 1} for each in documents(20, 10)])
    docs.create_model("ready", MyModel(LABELS, DIM))
    imputation = docs.create_imputation(model="ready", model_key="x", target_key="y", fill=False)
    imputation.wait(timeout=60, progress=False)

    rows = imputation.predict_documents({"y": {"$exists": False}}, limit=4)
    assert [row["document"] for row in rows] == [10, 11, 12, 13]
    assert [row["value"] for row in rows] == imputation.predict(
        [docs.find_one(row["document"])["x"] for row in rows]
    )
    told = imputation.explain(docs.find_one(10)["x"], version=1)
    assert told["value"] == rows[0]["value"] and told["returned"]["shape"] == [2]
    with pytest.raises(InvalidInput, match="an imputation knows"):
        imputation.predict_documents({}, key="x")
    with pytest.raises(NotFound, match="no version 5"):
        imputation.explain([0.0] * DIM, version=5)
