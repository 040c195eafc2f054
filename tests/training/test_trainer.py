"""The trainer: the seed's examples as written, what a run leaves behind, going on and refusing."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset
from trained import Classifier, config, data, parts, rows

from superduper import training as model_suite
from superduper.errors import InUse, InvalidInput
from superduper.training.event_file import read_scalars
from superduper.training.policies import Policy


def test_the_plain_example_learns_and_says_so_in_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = model_suite.Trainer(**parts(), config=config(tmp_path, n_epochs=12)).train()
    history = record["history"]
    assert history[-1]["validate_log_prob"] > history[0]["validate_log_prob"] + 0.1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [  # character by character what skorch prints of such columns
        "  epoch    train_log_prob    validate_log_prob     dur",
        "-------  ----------------  -------------------  ------",
    ]
    assert lines[2].split()[:2] == ["1", f"{history[0]['train_log_prob']:.4f}"]
    assert len(lines) == 14 and len({len(line) for line in lines}) == 1


def test_epoch_values_are_sums_over_the_records(tmp_path: Path) -> None:
    made = parts(n=70)
    record = model_suite.Trainer(**made, config=config(tmp_path)).train()
    features, labels = data(30, 9).tensors
    with torch.no_grad():
        expected = made["model"].eval()(features).log_prob(labels).mean()
    assert record["history"][-1]["validate_log_prob"] == pytest.approx(float(expected), abs=1e-6)
    assert [row["epoch"] for row in record["history"]] == [1, 2, 3]
    assert [row["step"] for row in record["history"]] == [5, 10, 15]


def test_the_example_with_a_metric_of_its_own_runs_as_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = parts()
    model = made["model"]

    def get_accuracy(features: Any, labels: Any, model: Any) -> torch.Tensor:
        return (model(features).logits.argmax(1) == labels).float()

    class Trainer(model_suite.Trainer):
        def train_batch(self, features, labels):
            log_prob = model(features).log_prob(labels)
            loss = -log_prob.mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

            return dict(
                log_prob=log_prob.sum(),
                accuracy=get_accuracy(features, labels, self.model).mean(),
            )

        def evaluate_batch(self, features, labels):
            return dict(
                log_prob=model(features).log_prob(labels).sum(),
                accuracy=get_accuracy(features, labels, self.model).mean(),
            )

        def summarize_epoch(self, train_results, validate_results, epoch):
            seen.append((epoch, len(train_results), len(validate_results)))
            assert not any(r["log_prob"].requires_grad for r in train_results)
            train_results, validate_results = (
                self.zip_dicts(train_results),
                self.zip_dicts(validate_results),
            )

            train_results = {
                key: sum(value) / len(self.train_loader.dataset)
                for key, value in train_results.items()
            }
            validate_results = {
                key: sum(value) / len(self.validate_loader.dataset)
                for key, value in validate_results.items()
            }

            epoch_results = self.merge_add_level(train=train_results, validate=validate_results)
            self.add_tb_scalars(epoch_results, epoch)

            return {key: epoch_results[key] for key in ["log_prob"]}

    seen: list[tuple[int, int, int]] = []
    record = Trainer(**made, config=config(tmp_path)).train()
    assert seen == [(1, 5, 2), (2, 5, 2), (3, 5, 2)]
    assert "accuracy" not in capsys.readouterr().out
    assert 0 < record["history"][-1]["validate_accuracy"] < 0.1  # a sum of means, as written
    events = [
        event
        for path in (tmp_path / "run/tensorboard/validate").iterdir()
        for event in read_scalars(path)
    ]
    assert [(step, tag) for step, tag, _ in events] == [
        (epoch, tag) for epoch in (1, 2, 3) for tag in ("log_prob", "accuracy")
    ]
    assert events[-2][2] == pytest.approx(record["history"][-1]["validate_log_prob"], abs=1e-5)


class Adversaries(torch.nn.Module):
    """A generator of boards, and a discriminator between its boards and given ones."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.nn.Linear(3, 2)
        self.discriminator = torch.nn.Sequential(
            torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )

    def judge(self, boards: torch.Tensor, real: float) -> torch.Tensor:
        verdict = torch.distributions.Bernoulli(logits=self.discriminator(boards).squeeze(1))
        return verdict.log_prob(torch.full((len(boards),), real))

    def get_discriminator_log_prob(
        self, features: torch.Tensor, boards: torch.Tensor
    ) -> torch.Tensor:
        fake = self.generator(features).detach()
        return self.judge(boards, 1.0) + self.judge(fake, 0.0)

    def get_generator_log_prob(self, features: torch.Tensor) -> torch.Tensor:
        return self.judge(self.generator(features), 1.0)


class GanTrainer(model_suite.Trainer):
    """As the seed writes it."""

    def train_batch(self, features, boards):
        discriminator_log_prob = self.model.get_discriminator_log_prob(features, boards)
        generator_log_prob = self.model.get_generator_log_prob(features)

        discriminator_loss = -discriminator_log_prob.mean()
        self.optimizer.discriminator_optimizer.zero_grad()
        discriminator_loss.backward()
        self.optimizer.discriminator_optimizer.step()

        generator_loss = -generator_log_prob.mean()
        self.optimizer.generator_optimizer.zero_grad()
        generator_loss.backward()
        self.optimizer.generator_optimizer.step()

        return dict(
            discriminator_log_prob=discriminator_log_prob.sum(),
            generator_log_prob=generator_log_prob.sum(),
        )

    def evaluate_batch(self, features, boards):
        return dict(
            discriminator_log_prob=self.model.get_discriminator_log_prob(features, boards).sum(),
            generator_log_prob=self.model.get_generator_log_prob(features).sum(),
        )


def gan(folder: Path, **more: Any) -> GanTrainer:
    torch.manual_seed(2)
    model = Adversaries()
    loader = DataLoader(
        TensorDataset(torch.randn(60, 3), torch.randn(60, 2) + 2), batch_size=20, shuffle=True
    )
    optimizer = model_suite.MultipleOptimizers(
        generator_optimizer=torch.optim.Adam(model.generator.parameters(), lr=0.01),
        discriminator_optimizer=torch.optim.SGD(model.discriminator.parameters(), 0.1, 0.9),
    )
    return GanTrainer(loader, loader, model, optimizer, config(folder, **more))


def test_the_adversarial_example_trains_both_as_written(tmp_path: Path) -> None:
    trainer = gan(tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    record = trainer.train()
    changed = [
        name for name, v in trainer.model.state_dict().items() if not torch.equal(v, before[name])
    ]
    assert changed == list(before)
    assert {"validate_discriminator_log_prob", "validate_generator_log_prob"} <= set(
        record["history"][0]
    )


def test_two_optimizers_go_on_to_the_same_end(tmp_path: Path) -> None:
    straight = gan(tmp_path / "a", n_epochs=4).train()
    gan(tmp_path / "b", n_epochs=2).train()
    longer = gan(tmp_path / "b", n_epochs=4).train()
    assert longer["final_hash"] == straight["final_hash"]
    assert rows(longer) == rows(straight)


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "train.log")
    }


def test_a_folder_with_another_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    model_suite.Trainer(**parts(), config=config(tmp_path, net={"width": 8})).train()
    before = everything(tmp_path)
    with pytest.raises(InvalidInput, match=r"another config \(net was .*8.*, is .*16"):
        model_suite.Trainer(**parts(), config=config(tmp_path, net={"width": 16})).train()
    made = parts()
    made["model"] = Classifier(width=16)
    made["optimizer"] = torch.optim.Adam(made["model"].parameters())
    with pytest.raises(InvalidInput, match="another model: .* have the hash"):
        model_suite.Trainer(**made, config=config(tmp_path, net={"width": 8})).train()
    made = parts()
    made["optimizer"] = torch.optim.SGD(
        [{"params": [p]} for p in made["model"].parameters()], momentum=0.9, lr=0.1
    )
    with pytest.raises(InvalidInput, match="another optimizer"):
        model_suite.Trainer(**made, config=config(tmp_path, net={"width": 8})).train()
    other = {**parts(n=71)}
    with pytest.raises(InvalidInput, match="other train data: it was 70 records with the hash"):
        model_suite.Trainer(**other, config=config(tmp_path, net={"width": 8})).train()
    changed = {p for p, content in everything(tmp_path).items() if before.get(p) != content}
    assert changed <= {str(tmp_path / "run/run.json")}
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/love.txt").write_text("dear")
    with pytest.raises(InvalidInput, match="no run: choose another model_dir"):
        model_suite.Trainer(**parts(), config={"model_dir": str(tmp_path / "letters")}).train()
    assert (tmp_path / "letters/love.txt").read_text() == "dear"


def test_a_folder_is_trained_in_by_one_program_at_a_time(tmp_path: Path) -> None:
    class Again(Policy):
        def epoch_finished(self) -> None:
            with pytest.raises(InUse, match="another program"):
                model_suite.Trainer(**parts(), config=config(tmp_path)).train()

    model_suite.Trainer(**parts(), config=config(tmp_path), policies=[Again()]).train()


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    made = parts()
    settings = config(tmp_path, n_epochs=5, save_interval=2, log_interval=3, seed=None)
    record = model_suite.Trainer(**made, config=settings).train()
    run = tmp_path / "run"
    names = sorted(path.name for path in (run / "models").iterdir())
    assert names == [f"epoch00{n}.safetensors" for n in (2, 4, 5)]
    last = load_file(run / "models/epoch005.safetensors")
    assert all(torch.equal(v, last[name]) for name, v in made["model"].state_dict().items())
    seed = json.loads((run / "config.json").read_text())["seed"]
    assert isinstance(seed, int) and record["seed"] == seed
    again = model_suite.Trainer(**parts(), config=settings)
    assert again.config["seed"] == seed
    assert json.loads((run / "run.json").read_text()) == record
    with (run / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4", "5"]
    assert float(table[4]["train_log_prob"]) == record["history"][4]["train_log_prob"]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if row["event"] == "step"] == [3, 6, 9, 12, 15, 18, 21, 24]
    assert "train_log_prob" in steps[0]
    log = (run / "train.log").read_text()
    assert "training ended: all epochs are done" in log and "step 24" in log


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    def final(folder: str, seed: int) -> str:
        settings = config(tmp_path / folder, seed=seed)
        record = model_suite.Trainer(**parts(dropout=0.3), config=settings).train()
        return str(record["final_hash"])

    assert final("a", 5) == final("b", 5) != final("c", 6)


def test_a_run_goes_on_from_anothers_weights_and_names_its_parent(tmp_path: Path) -> None:
    first = model_suite.Trainer(**parts(), config=config(tmp_path / "a")).train()
    made = parts()
    tuned = model_suite.Trainer(
        **made, config=config(tmp_path / "b", n_epochs=1), parent=tmp_path / "a/run"
    ).train()
    assert tuned["parent"]["hash"] == tuned["initial_hash"] == first["final_hash"]
    assert (tuned["parent"]["run"], tuned["parent"]["epoch"]) == (first["id"], 3)
    made = parts()
    file = tmp_path / "a/run/models/epoch002.safetensors"
    from_file = model_suite.Trainer(**made, config=config(tmp_path / "c"), parent=file).train()
    assert (from_file["parent"]["epoch"], from_file["parent"]["run"]) == (2, first["id"])
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(file.read_bytes())
    made = parts()
    from_alone = model_suite.Trainer(**made, config=config(tmp_path / "d"), parent=alone).train()
    assert (from_alone["parent"]["epoch"], from_alone["parent"]["run"]) == (2, None)
    assert from_alone["parent"]["hash"] == from_file["parent"]["hash"]


class Stream(torch.utils.data.IterableDataset[Any]):
    """Records without a length."""

    def __iter__(self) -> Iterator[Any]:
        features, labels = data(40).tensors
        return iter(zip(features, labels, strict=True))


def test_a_stream_is_trained_on_and_has_no_hash(tmp_path: Path) -> None:
    made = {**parts(), "train_loader": DataLoader(Stream(), 16), "validate_loader": None}
    record = model_suite.Trainer(**made, config=config(tmp_path)).train()
    assert record["data"] == {"train": {"n": None, "hash": None}}
    assert [row["step"] for row in record["history"]] == [3, 6, 9]
    assert "validate_log_prob" not in record["history"][0]


def test_a_list_of_batches_is_counted_by_its_records(tmp_path: Path) -> None:
    features, labels = data(25).tensors
    batches = [(features[:20], labels[:20]), (features[20:], labels[20:])]
    trainer = model_suite.Trainer(**{**parts(), "train_loader": batches}, config=config(tmp_path))
    assert repr(trainer) == f"Trainer(Classifier, '{tmp_path}/run': not begun)"
    assert trainer.train()["data"]["train"]["n"] == 25
    assert repr(trainer) == f"Trainer(Classifier, '{tmp_path}/run': finished, 3 epochs)"
