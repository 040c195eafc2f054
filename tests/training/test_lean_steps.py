"""What makes steps cheap changes nothing else: batches gathered at once, one kernel for Adam."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from superduper.training.graph import Frame
from superduper.training.loaders import LoaderSource, gathering
from superduper.training.optimizers import forget_gradients, optimizer_of
from superduper.training.sources import IndexSource

X, Y = torch.arange(90.0).reshape(45, 2), torch.arange(45)
DATA = TensorDataset(X, Y)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATA, 8, shuffle=True),
        DataLoader(DATA, 8),
        DataLoader(DATA, 8, shuffle=True, drop_last=True, generator=torch.Generator()),
        DataLoader(Subset(Subset(DATA, range(5, 40)), [3, 30, 7, 0]), 3, shuffle=True),
        DataLoader(DATA, sampler=torch.utils.data.WeightedRandomSampler([1.0, 2.0] * 22, 9)),
    ],
)
def test_a_loader_of_tensors_gives_the_same_batches_at_once(loader: Any) -> None:
    drawn = []
    for each in (loader, gathering(loader)):
        if loader.generator is not None:
            loader.generator.manual_seed(4)
        torch.manual_seed(3)
        drawn.append((list(each), torch.get_rng_state()))
    (plain, state), (quick, state_2) = drawn
    assert gathering(loader) is not loader
    assert [[part.tolist() for part in batch] for batch in plain] == [
        [part.tolist() for part in batch] for batch in quick
    ]
    assert torch.equal(state, state_2)  # whatever is drawn next is the same, too


class _Own(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return X[index]


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(_Own(), 2),
        DataLoader(Subset(_Own(), [1, 2]), 2),
        DataLoader(DATA, 2, collate_fn=len),
        DataLoader(DATA, batch_size=None),
        DataLoader(DATA, 2, num_workers=1),
        [X, Y],
    ],
)
def test_any_other_loader_is_left_as_it_is(loader: Any) -> None:
    assert gathering(loader) is loader


def test_a_source_numbers_the_batches_of_an_epoch_from_where_it_starts() -> None:
    source = LoaderSource([X] * 70, seed=0, name="train")
    assert [int(batch.index) for batch in source.batches(0, start=61)] == [*range(62, 71)]


def test_small_batches_are_gathered_many_at_a_time_and_large_ones_one_by_one() -> None:
    asked: list[int] = []

    def gather(index: torch.Tensor, width: int) -> Frame:
        asked.append(len(index))
        rows = index[:, None].expand(-1, width).float()
        return {"x": (rows, {"place": index}), "y": index}

    for width, wanted in ((2, [8, 92]), (1 << 16, [8] * 12 + [4])):
        asked.clear()
        source = IndexSource(100, lambda index, width=width: gather(index, width), 8, seed=1)
        batches = list(source.batches(0))
        assert asked == wanted
        assert torch.equal(torch.cat([batch.index for batch in batches]), source.order(0))
        for batch in batches:
            (rows, nested), y = batch.frame["x"], batch.frame["y"]
            assert torch.equal(rows[:, 1], batch.index.float())
            assert torch.equal(nested["place"], batch.index) and torch.equal(y, batch.index)
            assert batch.n == len(y)


def test_a_model_may_change_its_batch_in_its_place() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    source = IndexSource(45, lambda index: {"x": X.index_select(0, index)}, 8)
    for batch in source.batches(0):
        x = batch.frame["x"]
        x *= weight
        x.sum().backward()
    assert torch.equal(weight.grad, X.sum(0))  # type: ignore[arg-type]
    assert torch.equal(next(source.batches(0)).frame["x"], X[:8])


def test_adam_is_one_kernel_unless_another_is_asked_for() -> None:
    layer = torch.nn.Linear(2, 2)
    asked = {"name": "adam", "arguments": {"foreach": True}}
    kernels = [
        optimizer_of(spec, layer.parameters(), 0.1).param_groups[0].get("fused")
        for spec in ("adam", "AdamW", "sgd", "adagrad", asked)
    ]
    assert kernels == [True, True, None, None, None]
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    assert optimizer_of("adam", [weight], 0.1).param_groups[0]["fused"] is None


def test_an_optimizer_that_forgets_in_its_own_way_is_asked_to() -> None:
    class Zeroing(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            super().zero_grad(set_to_none=False)

    layer = torch.nn.Linear(2, 1)
    found = []
    for kind in (torch.optim.SGD, Zeroing):
        layer(X).sum().backward()
        forget_gradients(kind(layer.parameters(), lr=0.1))
        found.append(layer.weight.grad)
    assert found[0] is None
    assert torch.equal(found[1], torch.zeros(1, 2))
