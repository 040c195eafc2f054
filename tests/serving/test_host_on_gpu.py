"""Models in child processes on a GPU: the same answers, and what only a GPU can do to a process."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from superduper.errors import ChildDied
from superduper.fields import codec
from superduper.serving import choice
from superduper.serving.agreement import Limits
from superduper.serving.host import ModelHost
from superduper.serving.predictor import Predictor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

OpenHost = Callable[..., ModelHost]
DIM = 16
ROWS = 100
INPUTS = [torch.randn(DIM, generator=torch.Generator().manual_seed(n)) for n in range(ROWS)]


class Layers(torch.nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(DIM, 256), torch.nn.ReLU(), torch.nn.Linear(256, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class Labels(Layers):
    """Answers a name, with a confidence."""

    def postprocess(self, row: torch.Tensor) -> str:
        return "abc"[int(row.argmax())]

    def confidence(self, row: torch.Tensor) -> torch.Tensor:
        return row.softmax(0).max()


class Table(torch.nn.Module):
    """Looks numbers up in a table of ten."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table(x).sum(-1)  # type: ignore[no-any-return]


class Greedy(torch.nn.Module):
    """Wants a quarter of a million GiB for an input over 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > 0).any()):
            return x.new_empty(1 << 46)
        return self.layer(x)  # type: ignore[no-any-return]


class Counts(torch.nn.Module):
    """Yields its answer in three pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(DIM, 2)

    def forward(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        for n in range(3):
            yield self.layer(x) + n


def told(outcomes: Any) -> list[Any]:
    """The values of outcomes, or the messages of their errors."""
    return [
        each["error"]["message"] if "error" in each else codec.decode(each["value"])
        for each in map(dict, outcomes)
    ]


@pytest.mark.parametrize("model", [Layers(), Labels()], ids=["bare", "with postprocess"])
def test_a_gpu_answers_what_a_cpu_answers(
    open_host: OpenHost, monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module
) -> None:
    values = [codec.encode(each) for each in INPUTS]
    host = open_host(model)
    at_once, alone = told(host.predict(values)), told(host.predict(values[:1]))
    assert host.details["device"] == torch.cuda.get_device_name()
    assert host.details["gpu_memory_mb"] >= 1
    monkeypatch.setenv("SUPERDUPER_DEVICE", "cpu")
    other = open_host(model)
    by_cpu = told(other.predict(values))
    assert "device" not in other.details
    if isinstance(model, Labels):
        assert at_once == by_cpu and alone == by_cpu[:1]
    else:
        torch.testing.assert_close(torch.stack(at_once), torch.stack(by_cpu), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone[0], by_cpu[0], rtol=1e-4, atol=1e-5)


def test_the_same_batch_gives_the_same_bits(open_host: OpenHost) -> None:
    values = [codec.encode(each) for each in INPUTS]
    first, second = open_host(Layers()), open_host(Layers())
    answers = [told(host.predict(values)) for host in (first, first, second)]
    assert all(torch.equal(torch.stack(answers[0]), torch.stack(each)) for each in answers[1:])


def test_an_answer_comes_in_pieces(open_host: OpenHost) -> None:
    [answer] = told(open_host(Counts()).predict([codec.encode(INPUTS[0])]))
    assert len(answer) == 3
    torch.testing.assert_close(answer[2] - answer[0], torch.full((2,), 2.0))


def test_who_loses_the_gpu_ends_and_the_next_answers(open_host: OpenHost) -> None:
    """A failed assertion in a kernel makes every later call of its process fail."""
    host = open_host(Table())
    before = told(host.predict([1, 9]))
    with pytest.raises(ChildDied, match="exit code 70"):
        host.predict([1, 10])
    assert told(host.predict([1, 9])) == before


def test_too_large_for_the_gpu_fails_alone(open_host: OpenHost) -> None:
    host = open_host(Greedy())
    *few, large, last = told(host.predict([[-1.0], [-2.0], [1.0], [-3.0]]))
    assert "out of memory" in large and not any(isinstance(each, str) for each in (*few, last))
    assert len(told(host.predict([[-1.0]]))) == 1


def test_faster_forms_on_a_gpu() -> None:
    predictor = Predictor(Layers(), device="cuda")
    values = [codec.encode(each) for each in INPUTS]
    report = choice.choose(predictor, values, choice.AUTO, Limits(0.05, None))
    tried = {each["form"]: each for each in report["tried"]}
    assert tried["bf16"]["difference"] is not None and tried["bf16"]["difference"] < 0.05
    assert all("CPUs only" in tried[form]["why"] for form in ("int8", "onnx"))
    assert tried["compiled"]["difference"] is not None, tried["compiled"]["why"]
