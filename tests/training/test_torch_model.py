"""A model's own options, and its weights in a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from first_door import data, model_of, network

from superduper.errors import InvalidInput
from superduper.training.torch_model import TorchModel
from superduper.training.train import train_model


def test_accumulated_gradients_are_those_of_one_large_batch() -> None:
    x, y = data()
    weights = []
    for accumulate, size in ((1, 12), (3, 4)):
        model = TorchModel(
            torch.nn.Linear(4, 2),
            torch.nn.Identity(),
            torch.nn.CrossEntropyLoss(),
            torch.optim.SGD,
            accumulate=accumulate,
        )
        torch.nn.init.ones_(model.architecture.weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(model.architecture.bias)  # type: ignore[arg-type]
        batches = [(x[at : at + size], y[at : at + size]) for at in range(0, 24, size)]
        # The last batch waits for no others: it makes a step of its own.
        batches.append((x[24:28], y[24:28]))
        train_model(model, batches, n_epochs=2, lr=0.5)
        weights.append(model.architecture.weight.detach().cpu().numpy().copy())  # type: ignore
    assert weights[0] == pytest.approx(weights[1], abs=1e-6)


def test_gradients_are_clipped() -> None:
    x, y = data()
    clipped = model_of(clip=1e-9)
    before = clipped.architecture[0].weight.detach().clone()  # type: ignore[index]
    clipped.do_train_step(x, y, lr=1.0)
    assert torch.allclose(before, clipped.architecture[0].weight, atol=1e-7)  # type: ignore[index]


def test_weights_are_saved_as_safetensors(tmp_path: Path) -> None:
    x, _ = data()
    first, second = (
        model_of(),
        TorchModel(torch.nn.Sequential(*network()), torch.nn.Softmax(-1), abs, torch.optim.SGD),
    )
    first.save(tmp_path / "models" / "m.safetensors")
    torch.nn.init.zeros_(second.architecture[0].weight)  # type: ignore[index]
    second.load(tmp_path / "models" / "m.safetensors")
    assert np.array_equal(first.do_inf_step(x), second.do_inf_step(x))
    other = TorchModel(network(9), abs, abs, torch.optim.SGD)
    with pytest.raises(InvalidInput, match="(?s)has no weights of this model: .*size mismatch"):
        other.load(tmp_path / "models" / "m.safetensors")
    with pytest.raises(InvalidInput, match="cannot read weights"):
        other.load(tmp_path / "nothing")
