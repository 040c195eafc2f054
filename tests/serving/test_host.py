"""Models in real child processes: what they answer, and what they cannot do to us."""

import sys
import sysconfig
import threading
from collections.abc import Callable
from typing import Any

import bson
import numpy as np
import pytest
import torch
from bson import Binary
from sklearn.linear_model import LogisticRegression

from superduper.errors import (
    ArtifactRejected,
    ChildDied,
    InvalidInput,
    NotReady,
    SuperduperError,
    TimedOut,
    UserCodeError,
)
from superduper.fields import codec
from superduper.imputations.hosting import launch
from superduper.serving import loading
from superduper.serving.host import FRAME_BYTES, ModelHost, frames
from superduper.serving.hosted import wanted_batching
from superduper.serving.predictor import Predictor
from superduper.serving.stored import predict_stored
from superduper.store.registry import Registry

OpenHost = Callable[..., ModelHost]
LABELS = ["cat", "dog", "fish"]


def try_out(payload: Any, kind: str, *sample: Any) -> dict[str, Any]:
    """What a component is like; `sample` is a value, and that there is one."""
    return loading.try_out(payload, kind, launch, *sample)


class MyModel(torch.nn.Module):
    """The model of the classification example."""

    def __init__(self, labels: list[str], dim: int) -> None:
        super().__init__()
        self.labels = labels
        self.layer = torch.nn.Linear(dim, len(self.labels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def postprocess(self, output: torch.Tensor) -> str:
        estimate = output.topk(1)[1].item()
        return self.labels[int(estimate)]

    def confidence(self, output: torch.Tensor) -> torch.Tensor:
        return output.softmax(0).max()


class Harmful(torch.nn.Module):
    """Does what it is told by a number; gives other numbers back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 1).any()):
            raise ValueError("one is not welcome")
        if bool((x == 2).any()):
            sys.exit(7)
        if bool((x == 3).any()):
            import ctypes

            ctypes.string_at(0)
        if bool((x == 4).any()):
            while True:
                pass
        if bool((x == 5).any()):
            return torch.ones(1 << 40)
        if bool((x == 6).any()):
            import os

            os._exit(9)
        if bool((x == 7).any()):
            return x[:0]
        hoard = []
        while bool((x == 8).any()):
            hoard.append(torch.ones(10_000_000))
        return x


def stored(*values: Any) -> list[Any]:
    return [codec.encode(value) for value in values]


def test_the_classification_example(open_host: OpenHost) -> None:
    torch.manual_seed(0)
    model = MyModel(LABELS, 4)
    host = open_host(model)
    inputs = [torch.randn(4) for _ in range(10)]
    outcomes = host.predict(stored(*inputs))
    assert [outcome["value"] for outcome in outcomes] == [
        LABELS[int(model(x).argmax())] for x in inputs
    ]
    assert all(1 / 3 <= outcome["confidence"] <= 1 for outcome in outcomes)
    assert host.predict([[0.5, 1, 2, 3]])[0]["value"] in LABELS
    assert host.details["type"].endswith("MyModel")
    assert host.details["has_confidence"] is True
    assert host.details["memory_mb"] > 10


def test_one_by_one_gives_what_a_batch_gives_over_several_frames(open_host: OpenHost) -> None:
    host = open_host(torch.nn.Linear(8, 3))
    inputs = stored(*(torch.randn(8) for _ in range(600)))
    together = host.predict(inputs)
    assert len(together) == 600
    for index in (0, 255, 256, 599):
        [alone] = host.predict([inputs[index]])
        one, other = codec.decode(alone["value"]), codec.decode(together[index]["value"])
        assert torch.allclose(one, other, atol=1e-6)


def test_tuples_dicts_and_numpy_in_and_out(open_host: OpenHost) -> None:
    class Sum(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": a + b, "both": torch.stack([a, b], 1)}

    for preprocess in (
        lambda v: (v["a"], v["b"]),
        lambda v: {"b": np.float32(v["b"]), "a": np.asarray(v["a"], dtype="float32")},
    ):
        [outcome] = open_host(Sum(), preprocess=preprocess).predict([{"a": 1.0, "b": 2.0}])
        assert outcome["value"]["sum"] == 3.0
        assert codec.decode(outcome["value"]["both"]).tolist() == [1.0, 2.0]


def test_a_scikit_learn_estimator_and_a_function(open_host: OpenHost) -> None:
    x = np.array([[0.0, 0], [0, 1], [5, 5], [5, 6]])
    estimator = LogisticRegression().fit(x, ["low", "low", "high", "high"])
    outcomes = open_host(estimator).predict([[0.0, 0.5], *stored(np.array([5.0, 5.5]))])
    assert [outcome["value"] for outcome in outcomes] == ["low", "high"]
    assert all(outcome["confidence"] > 0.5 for outcome in outcomes)
    suffix = "!"
    outcomes = open_host(lambda text: text.upper() + suffix).predict(["a", 1, "b"])
    assert [outcome.get("value") for outcome in outcomes] == ["A!", None, "B!"]
    assert outcomes[1]["error"]["type"] == "AttributeError"


def test_a_function_of_tensors_is_given_tensors(open_host: OpenHost) -> None:
    host = open_host(lambda x: x.softmax(0).max().item())
    assert host.predict(stored(torch.zeros(4)))[0] == {"value": 0.25}


def test_what_fails_by_itself(open_host: OpenHost) -> None:
    host = open_host(
        Harmful(), postprocess=lambda row: {9.0: "\ud800", 10.0: object()}.get(row.item(), 0)
    )
    damaged = Binary(b"\x99\x00", 9)
    outcomes = host.predict([0.0, 1.0, 2.0, damaged, 9.0, 10.0, 5.0, 11.0])
    assert [outcome.get("value") for outcome in outcomes] == [0] + [None] * 6 + [0]
    messages = [outcome["error"]["message"] for outcome in outcomes[1:-1]]
    for message, expected in zip(
        messages, ["not welcome", "sys.exit(7)", "vector", "", "cannot be stored", ""], strict=True
    ):
        assert expected in message
    for outcome in host.predict([7.0, 0.0]):
        assert "returned 0 rows for 2 inputs" in outcome["error"]["message"]


@pytest.mark.parametrize(("value", "sign"), [(3.0, "SIGSEGV"), (6.0, "exit code 9")])
def test_a_death_is_the_error_of_its_request_only(
    open_host: OpenHost, value: float, sign: str
) -> None:
    host = open_host(Harmful())
    with pytest.raises(ChildDied, match=sign):
        host.predict([0.0, value])
    assert host.predict([0.0]) == [{"value": 0.0}]


def test_a_loop_without_end_is_ended(open_host: OpenHost) -> None:
    host = open_host(Harmful())
    assert host.predict([]) == []
    with pytest.raises(TimedOut, match="did not answer within 0.5 s"):
        host.predict([4.0], timeout=0.5)
    assert host.predict([0.0], timeout=0.5) == [{"value": 0.0}], "loading does not count"


def test_a_hoarder_of_memory_fails_alone(
    open_host: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERDUPER_CHILD_MEMORY_MB", "1024")
    outcomes = open_host(Harmful()).predict([0.0, 8.0, 0.5])
    assert [outcome.get("value") for outcome in outcomes] == [0.0, None, 0.5]
    assert "memory" in outcomes[1]["error"]["message"]


def test_one_that_dies_again_and_again_is_given_up_for_a_while(
    registry: Registry, register: Callable[..., Any]
) -> None:
    now = [1000.0]
    payload = registry.payload(register("m", Harmful()))
    host = ModelHost(payload, "m", launch, clock=lambda: now[0])
    for _ in range(5):
        with pytest.raises(ChildDied):
            host.predict([6.0])
        now[0] += 10
    with pytest.raises(NotReady, match=r"failed 5 times within 60 s .* 10 s; .*exit code 9"):
        host.predict([0.0])
    now[0] += 11
    assert host.predict([0.0]) == [{"value": 0.0}]
    host.close()


def test_a_closed_host_says_so(open_host: OpenHost) -> None:
    host = open_host(Harmful())
    assert host.predict([0.0]) == [{"value": 0.0}]
    caught: list[SuperduperError] = []

    def ask() -> None:
        try:
            host.predict([4.0], timeout=30)
        except SuperduperError as error:
            caught.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    host.close()
    asking.join(20)
    assert [type(error) for error in caught] == [NotReady]
    with pytest.raises(NotReady, match="has been closed"):
        host.predict([0.0])


def test_a_blob_that_was_changed_is_not_loaded(
    registry: Registry, register: Callable[..., Any]
) -> None:
    payload = dict(registry.payload(register("m", Harmful())))
    blob = bytearray(payload["blob"])
    blob[len(blob) // 2] ^= 1
    host = ModelHost({**payload, "blob": bytes(blob)}, "m", launch)
    with pytest.raises(ArtifactRejected):
        host.predict([0.0])
    host.close()


def test_frames_are_bounded() -> None:
    assert [len(part) for part in frames(list(range(600)))] == [256, 256, 88]
    big = b"x" * (FRAME_BYTES // 2)
    assert [len(part) for part in frames([{"x": big}, [big], big, 1, 2])] == [1, 1, 3]
    assert list(frames([])) == [[]]


# Registration ---------------------------------------------------------------------------------


def test_trying_out_a_model_on_its_sample(registry: Registry, register: Callable[..., Any]) -> None:
    payload = registry.payload(register("m", torch.nn.Linear(4, 2)))
    details = try_out(payload, "model", *stored(torch.ones(4)), True)
    assert details["output"] == {"type": "Tensor", "dtype": "float32", "shape": [2]}
    assert details["has_confidence"] is False
    assert details["signature"]["inputs"] == [{"name": "input", "dtype": "float32", "shape": [4]}]
    assert details["batching"] == {}
    assert "output" not in try_out(payload, "model")
    with pytest.raises(InvalidInput, match="failed on the sample: RuntimeError"):
        try_out(payload, "model", *stored(torch.ones(5)), True)


class Choosy(torch.nn.Identity):
    """Says how its requests are to be grouped."""

    max_batch_size = 8
    max_wait_ms = 0.5


def test_a_model_says_how_its_requests_are_grouped() -> None:
    assert wanted_batching(Choosy()) == {"max_batch_size": 8, "max_wait_ms": 0.5}
    wrong = Choosy()
    wrong.max_batch_size = 0
    with pytest.raises(InvalidInput, match="max_batch_size must be from 1 to 10000, not 0"):
        wanted_batching(wrong)


def test_stacked_rows_come_out_as_single_ones_do() -> None:
    torch.manual_seed(0)
    vectors = [codec.encode(row) for row in torch.randn(5, 4)]
    for model in (torch.nn.Linear(4, 2), torch.nn.Flatten(0), torch.nn.Sequential()):
        bare, careful = Predictor(model), Predictor(model, postprocess=lambda row: row)
        assert bare.is_bare and not careful.is_bare
        told = [bson.decode(bson.encode(outcome)) for outcome in predict_stored(bare, vectors)]
        wanted = [bson.decode(outcome.raw) for outcome in predict_stored(careful, vectors)]
        for one, other in zip(told, wanted, strict=True):
            assert one.keys() == other.keys()
            if "value" in one:
                torch.testing.assert_close(codec.decode(one["value"]), codec.decode(other["value"]))


class Mode(torch.nn.Module):
    """Tells whether it and its parts are in training mode, and whether gradients are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.part = torch.nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        told = [self.training, self.part.training, torch.is_grad_enabled()]
        return torch.tensor([told] * len(x))


def test_a_hosted_model_is_in_evaluation_mode_and_keeps_no_gradients(open_host: OpenHost) -> None:
    host = open_host(Mode().train())
    for values in ([codec.encode(torch.zeros(2))], [codec.encode(torch.zeros(2, 2))]):
        [outcome] = host.predict(values)
        assert not codec.decode(dict(outcome)["value"]).any()


class OnlyOne(torch.nn.Module):
    """Forgets that there is a batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "thing", "message"),
    [
        ("model", OnlyOne(), "but not on a batch of two of it: WrongRows: .* 1 rows for 2 inputs"),
        ("model", lambda value: {1, 2}, "its output cannot be stored: .*set"),
        ("model", MyModel, "MyModel is a class: register an instance"),
        ("loss", torch.nn.CrossEntropyLoss, "CrossEntropyLoss is a class: register an instance"),
        ("metric", 7, "a metric must be callable; builtins.int is not"),
        ("trainer", torch.nn.ReLU(), "a trainer must be a class"),
        ("encoder", len, "an encoder needs the methods encode and decode"),
    ],
)
def test_what_registration_refuses(
    registry: Registry, register: Callable[..., Any], kind: str, thing: Any, message: str
) -> None:
    payload = registry.payload(register("m", thing, kind))
    with pytest.raises(InvalidInput, match=message):
        try_out(payload, kind, 1.0, True)


@pytest.mark.parametrize(
    ("kind", "thing"),
    [
        ("function", lambda label: torch.tensor(LABELS.index(label))),
        ("function", int),
        ("loss", torch.nn.CrossEntropyLoss()),
        ("metric", lambda x, y: x == y),
        ("trainer", MyModel),
    ],
)
def test_other_kinds_are_tried_out_too(
    registry: Registry, register: Callable[..., Any], kind: str, thing: Any
) -> None:
    assert try_out(registry.payload(register("m", thing, kind)), kind)["load_ms"] >= 0


def test_a_model_that_kills_its_process_when_tried(
    registry: Registry, register: Callable[..., Any]
) -> None:
    payload = registry.payload(register("m", Harmful()))
    with pytest.raises(UserCodeError, match="failed when it was tried out: .*exit code 9"):
        try_out(payload, "model", 6.0, True)


def test_a_missing_module_is_named(
    registry: Registry, register: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import types

    module = types.ModuleType("imaginary_package")
    module.__file__ = f"{sysconfig.get_path('purelib')}/imaginary_package.py"
    exec("class Model:\n    def predict(self, many): return many", module.__dict__)
    module.Model.__module__ = "imaginary_package"
    monkeypatch.setitem(sys.modules, "imaginary_package", module)
    payload = registry.payload(register("m", module.Model()))
    with pytest.raises(InvalidInput, match="needs the module 'imaginary_package'"):
        try_out(payload, "model")
