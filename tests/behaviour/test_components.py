"""Components: registered, versioned, tried out, refused, deleted; the same on both transports."""

import enum
import threading

import pytest
import torch

from definitions import DIM, LABELS, MyModel, MyTarget, accuracy
from superduper.errors import InUse, InvalidInput, NotFound, SuperduperError, UserCodeError


class Colour(enum.Enum):
    RED = 1


def test_the_same_content_is_the_same_version_and_other_content_another(docs):
    torch.manual_seed(0)
    model = MyModel(LABELS, DIM)
    assert docs.create_model("my_model", model)["version"] == 1
    assert docs.create_model("my_model", model)["version"] == 1
    assert docs.create_model("my_model", MyModel(LABELS, DIM + 1))["version"] == 2
    assert [row["name"] for row in docs.list("model")] == ["my_model"]
    assert docs.show("model", "my_model")["version"] == 2
    assert docs.show("model", "my_model", version=1)["version"] == 1


def test_source_is_kept_where_it_can_be_had(docs):
    assert "lookup" in docs.create_function("my_target", MyTarget(LABELS))["source"]


@pytest.mark.parametrize("name", ["", "1st", "a b", "a/b", "é", "x" * 64, "a\n", "../x", "a.b"])
def test_names_are_checked_before_anything_else(docs, name):
    with pytest.raises(InvalidInput):
        docs.create_metric(name, accuracy)


def test_an_object_that_cannot_be_sealed_is_named(docs):
    class Holder:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, x):
            return x

    with pytest.raises(InvalidInput, match="lock"):
        docs.create_function("holder", Holder())


def test_a_model_is_tried_out_on_its_sample(docs):
    with pytest.raises(InvalidInput, match="shape|size|mat1"):
        docs.create_model("my_model", MyModel(LABELS, DIM), sample=torch.zeros(DIM + 1))
    with pytest.raises(NotFound):
        docs.show("model", "my_model")
    docs.create_model("my_model", MyModel(LABELS, DIM), sample=torch.zeros(DIM))


def test_an_enum_of_this_file_is_sealed(docs):
    docs.create_function("colour", lambda value, kind=Colour: kind.RED.value + value)
    docs.create_model("plain", lambda value, kind=Colour: kind.RED.value + value)
    assert docs.predict("plain", [1, 2]) == [2, 3]


@pytest.mark.parametrize("kind", ["function", "model", "loss", "metric", "trainer", "encoder"])
def test_what_is_not_there_is_said(docs, kind):
    with pytest.raises(NotFound, match="nothing_such"):
        docs.show(kind, "nothing_such")
    with pytest.raises(NotFound):
        docs.delete(kind, "nothing_such")


def test_an_unknown_version_is_said(docs):
    docs.create_metric("accuracy", accuracy)
    with pytest.raises(NotFound, match="7"):
        docs.show("metric", "accuracy", version=7)


def test_an_unknown_kind_is_said(docs):
    with pytest.raises(SuperduperError):
        docs.list("widget")


def test_what_is_used_is_not_deleted(docs):
    docs.create_model("upper", str.upper)
    docs.create_watcher("shout", model="upper", key="text")
    with pytest.raises(InUse, match="shout"):
        docs.delete("model", "upper")
    docs.delete("imputation", "shout")
    docs.delete("model", "upper")
    with pytest.raises(NotFound):
        docs.show("model", "upper")


def test_predictions(docs):
    torch.manual_seed(0)
    model = MyModel(LABELS, DIM)
    docs.create_model("my_model", model)
    inputs = [torch.randn(DIM) for _ in range(5)]
    expected = [model.postprocess(model(x)) for x in inputs]
    assert docs.predict("my_model", inputs) == expected
    assert docs.predict("my_model", inputs[0]) == expected[0]
    assert docs.predict("my_model", []) == []


def test_a_bad_input_is_an_error_and_the_next_request_works(docs):
    docs.create_model("my_model", MyModel(LABELS, DIM))
    with pytest.raises(UserCodeError):
        docs.predict("my_model", torch.zeros(DIM + 3))
    assert docs.predict("my_model", torch.zeros(DIM)) in LABELS


def test_a_model_that_exits_harms_nobody(docs):
    import os

    docs.create_model("quitter", lambda value: os._exit(3) if value == "quit" else value)
    with pytest.raises(SuperduperError, match="3|died|ended"):
        docs.predict("quitter", "quit")
    assert docs.predict("quitter", "stay") == "stay"


def test_a_wrong_number_of_rows_is_told_with_both_numbers(docs):
    class Half:
        def predict(self, values):
            return values[::2]

    docs.create_model("half", Half())
    with pytest.raises(UserCodeError, match="returned 2 rows for 3 inputs"):
        docs.predict("half", [1, 2, 3])
    with pytest.raises(InvalidInput, match="1 rows for 2 inputs"):
        docs.create_model("half", Half(), sample=1)
    assert docs.show("model", "half")["version"] == 1
