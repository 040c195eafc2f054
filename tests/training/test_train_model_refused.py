"""What the first door refuses, and what it says when a training fails."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from first_door import Plain, data, model_of, network, stream

from superduper.errors import InvalidInput, UserCodeError
from superduper.training import (
    TQDM,
    Infinite,
    Policy,
    TargetStop,
    TorchModel,
    load_by_random_id,
    train_model,
)


def test_a_loss_that_is_no_number_names_step_and_ids() -> None:
    x, y = data()
    x[41] = np.nan
    source = load_by_random_id(lambda i: x[i], lambda i: y[i], ids=range(60), random_state=0)
    batches = Infinite(source, batch_size=8, n_iters_per_epoch=50)
    with pytest.raises(UserCodeError, match=r"became nan at step \d+ .*the ids \[.*\b41\b"):
        train_model(model_of(), batches, 5, lr=0.1)


class Naming(Policy):
    """Asks for what nobody gives."""

    def epoch_finished(self, epoch: int, nonsense: Any) -> None:
        raise AssertionError("it cannot be called")


def frozen() -> torch.nn.Module:
    return network().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TorchModel(torch.nn.ReLU(), abs, abs, torch.optim.SGD), "ReLU has no parameters"),
        (lambda: TorchModel(frozen(), abs, abs, torch.optim.SGD), "has no parameters to train"),
        (
            lambda: TorchModel(network(), abs, abs, torch.optim.SGD(network(3).parameters())),
            "the optimizer SGD has 4 parameters that are not the model's",
        ),
        (
            lambda: TorchModel(
                network(), abs, abs, lambda _: torch.optim.SGD(network(3).parameters(), 0.1)
            ),
            "the optimizer SGD has 4 parameters that are not the model's",
        ),
        (lambda: TorchModel(network(), abs, abs, "adam"), "the optimizer is 'adam': give a class"),
        (lambda: TorchModel(network(), abs, abs, lambda _: 3), "int is 3: give an optimizer of"),
        (
            lambda: TorchModel(network(), abs, torch.nn.CrossEntropyLoss, torch.optim.SGD),
            "the criterion <class .* cannot be called with outputs: give a function",
        ),
        (lambda: TorchModel(torch.nn.Linear, abs, abs, torch.optim.SGD), "no instance of a Module"),
        (lambda: model_of(clip=0), "clip is the greatest norm of the gradients, over 0, not 0"),
        (lambda: model_of(device="nowhere"), "there is no device 'nowhere' here"),
        (lambda: train_model(TorchModel, stream(), 1, 1), "the class TorchModel: give an instance"),
        (lambda: train_model(model_of(), stream(), "3", 1), "n_epochs must be a whole .* not '3'"),
        (lambda: train_model(model_of(), stream(), np.nan, 1), "n_epochs must be a whole number"),
        (lambda: train_model(Plain(), stream(), 1, 1, validate=3), "validate is a int: give a"),
        (
            lambda: model_of().do_train_step(np.array(["a", "b"]), np.zeros(2, int), lr=1),
            "an input of the batch is no array of numbers, but of <U1",
        ),
        (
            lambda: train_model(Plain(), stream(), 1, 1, p=Naming()),
            r"Naming\.epoch_finished names nonsense: there are engine, epoch, metrics, policies, ",
        ),
        (lambda: model_of(accumulate=0), "accumulate must be at least 1"),
        (lambda: model_of(mixed_precision="fp8"), "must be 'bf16' or 'fp16', or None .*not 'fp8'"),
        (
            lambda: model_of().do_train_step(np.zeros((2, 5)), np.zeros(2, int), lr=1),
            r"refused a batch of the shapes \(2, 5\), \(2,\): mat1 and mat2",
        ),
        (
            lambda: model_of().do_train_step(np.zeros((2, 4)), np.zeros(3, int), lr=1),
            r"refused a batch of the shapes \(2, 4\), \(3,\): Expected input batch_size",
        ),
        (
            lambda: train_model(model_of(), stream(), 1, 1, weights=2),
            "given 'weights', of which SGD knows nothing: override do_train_step",
        ),
        (lambda: train_model(object(), stream(), 1, 1), "object has no method do_train_step"),
        (lambda: train_model(model_of(), iter([]), 1, 1), "which cannot be gone through again"),
        (lambda: train_model(model_of(), [], 1, 1), "has no batches"),
        (lambda: train_model(model_of(), stream(), -1, 1), "n_epochs must be a whole number"),
        (lambda: train_model(model_of(), stream(), 1, 1, stop=TQDM), "'stop' is the class TQDM"),
        (lambda: train_model(model_of(), stream(), 1, lr=TQDM()), "lr is a TQDM, which carries no"),
        (
            lambda: train_model(Plain("x"), stream(), 1, 1),
            "returned a str: it must return the loss",
        ),
        (
            lambda: train_model(Plain(), stream(), 1, 1, validate=lambda: 3),  # type: ignore
            "validate returned a int, not a dictionary",
        ),
        (
            lambda: train_model(Plain(), stream(), 1, 1, stop=TargetStop("f1", 1)),
            "cannot watch 'f1': validation measures nothing",
        ),
        (lambda: load_by_random_id(str, ids=[]), "at least one loader and one id"),
        (lambda: load_by_random_id(str, ids="ab", weights=[1]), "weights must be 2 numbers"),
        (lambda: load_by_random_id(str, ids="ab", weights=[0, 0]), "all weights are 0"),
        (
            lambda: list(Infinite([np.zeros(2), np.zeros(3)], batch_size=2, n_iters_per_epoch=1)),
            r"the shapes \[\(2,\), \(3,\)\]",
        ),
    ],
)
def test_wrong_input_is_refused_with_a_reason(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()
    assert re.search(message, str(caught.value)), caught.value


def test_an_exception_in_a_policy_fails_the_training() -> None:
    class Broken(Policy):
        def train_step_finished(self) -> None:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train_model(Plain(), stream(), 1, lr=1, broken=Broken())
