"""The parts of the trainer: results, optimizers, configs, hashes, splits, event files, scores."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Subset
from trained import Classifier, config, data, parts

from superduper import training
from superduper.errors import InvalidInput, NotFound
from superduper.training.event_file import EventFile, masked_checksum, read_scalars

EXAMPLES = {
    example["id"]: example
    for example in json.loads(
        (Path(__file__).parent / "seed001_examples.json").read_text(encoding="utf-8")
    )["examples"]
}


def test_dm_zip_merge() -> None:
    example = EXAMPLES["dm-zip-merge"]
    dicts, levels = example["input"]["zip_dicts"], example["input"]["merge_add_level"]
    expected = example["expected"]
    assert training.zip_dicts(dicts) == expected["zip_dicts"]
    assert training.zip_dicts(*dicts) == expected["zip_dicts"]
    assert training.Trainer.zip_dicts(dicts) == expected["zip_dicts"]
    assert training.merge_add_level(**levels) == expected["merge_add_level"]
    assert training.zip_dicts([]) == training.zip_dicts() == training.zip_dicts({}, {}) == {}
    assert training.zip_dicts({"a": 1}) == training.zip_dicts(iter([{"a": 1}])) == {"a": [1]}
    nested = [{"a": {"b": 1}}, {"a": {"b": 2}, "c": []}]
    assert training.zip_dicts(nested) == {"a": [{"b": 1}, {"b": 2}], "c": [[]]}
    assert training.merge_add_level() == training.merge_add_level(train={}) == {}
    assert training.merge_add_level(train={"a": 1}, test={}) == {"a": {"train": 1}}


def test_dm_file_hash(tmp_path: Path) -> None:
    example = EXAMPLES["dm-file-hash"]
    (tmp_path / "file").write_bytes(example["input"]["bytes"].encode())
    assert training.file_hash(tmp_path / "file") == example["expected"]


def test_several_optimizers_are_one() -> None:
    first, second = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)

    def make() -> training.MultipleOptimizers:
        return training.MultipleOptimizers(
            one=torch.optim.Adam(first.parameters()), two=torch.optim.SGD(second.parameters(), 0.1)
        )

    optimizers = make()
    (first(torch.ones(1, 2)) + second(torch.ones(1, 2))).sum().backward()
    before = [first.weight.clone(), second.weight.clone()]
    optimizers.step()
    assert not torch.equal(first.weight, before[0]) and not torch.equal(second.weight, before[1])
    optimizers.zero_grad()
    assert first.weight.grad is None and second.weight.grad is None
    state = optimizers.state_dict()
    assert sorted(state) == ["one", "two"]
    again = make()
    again.load_state_dict(state)
    assert again.one.state_dict()["state"][0]["step"] == 1
    assert isinstance(copy.deepcopy(optimizers).one, torch.optim.Adam)
    with pytest.raises(AttributeError, match="no optimizer 'three'; there are"):
        _ = optimizers.three
    with pytest.raises(InvalidInput, match="cannot be called 'step'"):
        training.MultipleOptimizers(step=torch.optim.Adam(first.parameters()))
    with pytest.raises(InvalidInput, match="the state is of the optimizers"):
        again.load_state_dict({"one": state["one"]})


def test_a_config_is_merged_in_depth_and_has_a_seed() -> None:
    defaults = {"net": {"width": 8, "depth": 2}, "lr": 0.1}
    made = training.make_config(defaults, {"net": {"width": 16}}, {"lr": 0.2})
    assert made["net"] == {"width": 16, "depth": 2} and made["lr"] == 0.2
    assert isinstance(made["seed"], int)
    assert training.make_config(defaults, {"seed": 3})["seed"] == 3
    assert defaults == {"net": {"width": 8, "depth": 2}, "lr": 0.1}


class Frame:
    """What a dataframe looks like from outside."""

    def __init__(self, **columns: Any) -> None:
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name: str) -> "Frame":
        return Frame(**{name: self._columns[name]})

    def to_numpy(self) -> Any:
        return numpy.array(self._columns[self.columns[0]], dtype=object)


def test_equal_data_have_equal_hashes_and_others_do_not() -> None:
    assert training.data_hash(data(20)) == training.data_hash(data(20))
    assert training.data_hash(data(20)) == training.data_hash(Subset(data(40), range(20)))
    rows: list[Any] = [1, 1.0, True, "1", b"1", None, [1], [[1]], {"1": 1}, numpy.float32(1)]
    rows += [torch.tensor(1), torch.tensor([1]), torch.tensor([[1]]), numpy.ones(1)]
    assert len({training.data_hash([row]) for row in rows}) == len(rows)
    assert training.data_hash([1, 2]) != training.data_hash([2, 1])
    frames = [Frame(a=[1, 2]), Frame(b=[1, 2]), Frame(a=[1, 3]), Frame(a=[1, 2], b=["x", None])]
    assert len({training.data_hash(frame) for frame in frames}) == 4
    with pytest.raises(InvalidInput, match="record 1 holds a object"):
        training.data_hash([1, object()])


def test_data_that_are_augmented_at_random_have_one_hash() -> None:
    class Noisy(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> torch.Tensor:
            if index > 2:
                raise IndexError
            return torch.randn(2) + index

    torch.manual_seed(4)
    expected = torch.randn(1)
    torch.manual_seed(4)
    first = training.data_hash(Noisy())
    assert torch.equal(torch.randn(1), expected)  # what is drawn after is not changed
    assert training.data_hash(Noisy()) == first


def test_a_flipped_row_changes_the_hash_of_its_part_only(tmp_path: Path) -> None:
    def hashes(folder: str, flip: str | None) -> dict[str, str]:
        sets = {"train": data(20), "validate": data(10, 1), "test": data(10, 2)}
        if flip:
            sets[flip].tensors[1][3] ^= 1
        loaders = {f"{name}_loader": DataLoader(each, 5) for name, each in sets.items()}
        settings = config(tmp_path / folder, n_epochs=1)
        record = training.Trainer(**{**parts(), **loaders}, config=settings).train()
        assert record["test"].keys() == {"log_prob"}
        return {name: part["hash"] for name, part in record["data"].items()}

    plain = hashes("plain", None)
    for name in ("train", "validate", "test"):
        changed = hashes(name, name)
        assert [part for part in plain if plain[part] != changed[part]] == [name]


def test_the_hash_of_the_initial_model_is_recorded(tmp_path: Path) -> None:
    made = parts()
    initial = training.model_hash(made["model"])
    record = training.Trainer(**made, config=config(tmp_path, n_epochs=1)).train()
    assert record["initial_hash"] == initial
    assert record["final_hash"] == training.model_hash(made["model"]) != initial


@pytest.mark.parametrize("kind", [list, torch.tensor, numpy.array])
def test_shares_of_a_split_are_of_the_whole(kind: Any) -> None:
    split = training.train_validate_test_split(kind(list(range(8))), 0.25, 0.25)
    assert [len(part) for part in split] == [4, 2, 2]
    assert sorted(int(row) for part in split for row in part) == list(range(8))


def test_a_dataset_is_split_by_seed() -> None:
    split = [training.train_validate_test_split(data(8), 0.25, 0.25, seed) for seed in (0, 0, 1)]
    indices = [[part.indices for part in parts] for parts in split]
    assert indices[0] == indices[1] != indices[2]
    with pytest.raises(InvalidInput, match="8 records cannot give 4 to validate, 4 to test"):
        training.train_validate_test_split(data(8), 0.5, 0.5)


def test_event_files_read_back(tmp_path: Path) -> None:
    assert masked_checksum(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % (
        1 << 32
    )
    file = EventFile(tmp_path, from_step=3)
    file.add({"loss": 0.5, "größe": -2.0}, 3)
    file.add({"loss": 0.25}, 300)
    file.close()
    expected = [(3, "loss", 0.5), (3, "größe", -2.0), (300, "loss", 0.25)]
    assert list(read_scalars(file.path)) == expected
    content = bytearray(file.path.read_bytes())
    content[-6] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged at byte"):
        list(read_scalars(file.path))


def test_runs_are_ranked_among_those_with_equal_test_data(tmp_path: Path) -> None:
    def train(name: str, n_epochs: int, test: int) -> None:
        loader = DataLoader(data(20, test), 10)
        settings = config(tmp_path / name, n_epochs=n_epochs)
        training.Trainer(**parts(), config=settings, test_loader=loader).train()

    for name, n_epochs, test in (("a", 1, 7), ("b", 6, 7), ("c", 3, 7), ("d", 9, 8)):
        train(name, n_epochs, test)
    table = training.highscores(tmp_path, "log_prob")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table:
        groups.setdefault(row["data_hash"], []).append(row)
    by_size = sorted(groups.values(), key=len)
    assert [[row["rank"] for row in rows] for rows in by_size] == [[1], [1, 2, 3]]
    assert [Path(row["run"]).parent.name for row in by_size[1]] == ["b", "c", "a"]
    assert all(row["fold"] == "test" and row["n"] == 20 for row in table)
    lowest = training.highscores(tmp_path, "log_prob", higher_is_better=False)
    assert {row["run"] for row in lowest if row["rank"] == 1} == {
        str(tmp_path / "a/run"),
        str(tmp_path / "d/run"),
    }
    assert training.highscores(tmp_path, "accuracy") == []


def test_an_epochs_weights_are_loaded(tmp_path: Path) -> None:
    record = training.Trainer(**parts(), config=config(tmp_path, n_epochs=2)).train()
    model = Classifier()
    assert training.load_epoch(tmp_path / "run", model)["hash"] == record["final_hash"]
    assert training.model_hash(model) == record["final_hash"]
    assert training.load_epoch(tmp_path / "run", model, epoch=1)["epoch"] == 1
    with pytest.raises(NotFound, match=r"has no epoch 7; it has \[1, 2\]"):
        training.load_epoch(tmp_path / "run", model, epoch=7)
    with pytest.raises(InvalidInput, match="the weights of another model"):
        training.load_epoch(tmp_path / "run", Classifier(width=3))


def test_no_public_name_is_a_modules() -> None:
    folder = Path(training.__file__).parent
    assert not {path.stem for path in folder.glob("*.py")} & set(training.__all__)
