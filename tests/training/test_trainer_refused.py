"""What a trainer refuses, and how it fails."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from trained import Classifier, config, data, parts

from superduper import training as model_suite
from superduper.errors import InvalidInput, UserCodeError
from superduper.training.policies import Policy


def test_bad_input_is_named(tmp_path: Path) -> None:
    made = parts()
    other = torch.optim.Adam(Classifier().parameters())
    with pytest.raises(InvalidInput, match="an optimizer of another model"):
        model_suite.Trainer(**{**made, "optimizer": other}, config=config(tmp_path))
    with pytest.raises(InvalidInput, match="no parameters to train"):
        model_suite.Trainer(**{**made, "model": torch.nn.ReLU()}, config=config(tmp_path))
    with pytest.raises(InvalidInput, match="n_epochs is 0"):
        model_suite.Trainer(**made, config=config(tmp_path, n_epochs=0))
    with pytest.raises(InvalidInput, match="kept as JSON"):
        model_suite.Trainer(**made, config=config(tmp_path, net=torch.nn.ReLU()))
    with pytest.raises(InvalidInput, match="only once"):
        loader = {"train_loader": iter(made["train_loader"])}
        model_suite.Trainer(**{**made, **loader}, config=config(tmp_path)).train()
    for wrong, message in (
        ({"model": Classifier}, "is no instance of a Module"),
        ({"optimizer": torch.optim.Adam}, "give an optimizer of torch.optim's"),
        ({"optimizer": None}, "optimizer is None: give an optimizer"),
        ({"policies": [Policy]}, "is no instance of a Policy"),
        ({"train_loader": None}, "there is no train loader"),
    ):
        with pytest.raises(InvalidInput, match=message):
            model_suite.Trainer(**{**made, **wrong}, config=config(tmp_path)).train()
    with pytest.raises(InvalidInput, match="nan_stop is 'no': it must be true or false"):
        model_suite.Trainer(**made, config=config(tmp_path, nan_stop="no"))
    with pytest.raises(InvalidInput, match=r"returned a Tensor: return a torch\.distributions"):
        plain = torch.nn.Linear(4, 2)
        plain_parts = {"model": plain, "optimizer": torch.optim.Adam(plain.parameters())}
        model_suite.Trainer(**{**made, **plain_parts}, config=config(tmp_path / "p")).train()


def test_an_exception_in_a_policy_fails_the_run_which_can_be_gone_on_with(tmp_path: Path) -> None:
    class Broken(Policy):
        def epoch_finished(self, epoch: int) -> None:
            if epoch == 2 and broken:
                raise ZeroDivisionError("in a policy")

    def train(folder: Path) -> Any:
        made = parts()
        return model_suite.Trainer(**made, config=config(folder), policies=[Broken()]).train()

    broken = False
    straight = train(tmp_path / "a")
    broken = True
    with pytest.raises(ZeroDivisionError, match="in a policy"):
        train(tmp_path / "b")
    kept = json.loads((tmp_path / "b/run/run.json").read_text())
    assert kept["status"] == "failed" and "in a policy" in str(kept["error"])
    broken = False
    assert train(tmp_path / "b")["final_hash"] == straight["final_hash"]


def test_a_batch_of_the_wrong_shape_is_told_of_with_its_shapes(tmp_path: Path) -> None:
    wrong = DataLoader(TensorDataset(torch.zeros(8, 5), torch.zeros(8).long()), 8)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        model_suite.Trainer(**{**parts(), "train_loader": wrong}, config=config(tmp_path)).train()
    assert caught.value.__notes__ == [
        "train_batch was given a batch of the shapes (8, 5), (8,)",
        "This was in step 1 (epoch 1), on batch 1 of the epoch.",
    ]


def test_a_state_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    class Stateful(Classifier):
        def get_extra_state(self) -> Any:
            return {"seen": 3}

    model = Stateful()
    made = {**parts(), "model": model, "optimizer": torch.optim.Adam(model.parameters())}
    with pytest.raises(InvalidInput, match="'_extra_state' in the state of Stateful is a dict"):
        model_suite.Trainer(**made, config=config(tmp_path)).train()


@pytest.mark.parametrize("summary", [3, {"a": {"b": {"c": 1}}}, {"a": "text"}])
def test_a_summary_that_is_no_row_of_numbers_is_refused(tmp_path: Path, summary: Any) -> None:
    class Summing(model_suite.Trainer):
        def summarize_epoch(self, *_: Any) -> Any:
            return summary

    with pytest.raises(InvalidInput, match="summarize_epoch returned .*: return a dict of numbers"):
        Summing(**parts(), config=config(tmp_path)).train()


def test_steps_that_return_no_sums_are_refused(tmp_path: Path) -> None:
    class PerRecord(model_suite.Trainer):
        def train_batch(self, *batch: Any) -> Any:
            return {"log_prob": self._log_prob(*batch)}

    with pytest.raises(InvalidInput, match=r"'log_prob' of shape \(16,\): return its sum"):
        PerRecord(**parts(), config=config(tmp_path)).train()


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_batch(tmp_path: Path) -> None:
    made = parts()
    dataset = data()
    dataset.tensors[0][40] = float("nan")
    made["train_loader"] = DataLoader(dataset, batch_size=16)
    with pytest.raises(UserCodeError, match=r"became nan at step 3 .* on batch 3 of the epoch"):
        model_suite.Trainer(**made, config=config(tmp_path)).train()
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"
