"""How far an input is from the training documents, and from where on that is too far."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.datasets import load_breast_cancer, load_digits
from tables import Table

from superduper.errors import InvalidInput
from superduper.imputations.fitting import domain as measuring
from superduper.imputations.fitting.domain import fit_domain, threshold_rank
from superduper.serving.domain import FEATURES, PULLED_IN, Domain, as_rows
from superduper.serving.failures import Failure

DIGITS = load_digits().data
CANCER = load_breast_cancer().data


def shuffled(data: Any, seed: int = 0) -> Any:
    return data[np.random.default_rng(seed).permutation(len(data))]


def fitted(data: Any, share: float, train: int, held_back: int, seed: int = 0) -> Domain:
    parts = data[:train], data[train : train + held_back]
    return fit_domain(Table(parts[0]), [Table(parts[1])], share, seed)


def turned_away(domain: Domain, rows: Any) -> float:
    """The share of rows that are out of domain."""
    found = domain.outside([torch.tensor(row) for row in np.array(rows)])
    return sum(each is not None for each in found) / len(found)


def by_hand(domain: Domain, row: Any) -> float:
    """The same distance, one reference after the other."""
    space = domain.space
    standard = (np.asarray(row) - space.mean.numpy()) / space.deviation.numpy()
    point = PULLED_IN * np.arcsinh(standard / PULLED_IN)
    if len(point) > FEATURES:
        folded = np.zeros(FEATURES)
        for value, place, sign in zip(point, space.places.tolist(), space.signs, strict=True):
            folded[place] += value * float(sign)
        point = folded
    factor, distances = domain.factor.numpy(), []
    for view, reaches in enumerate(domain.reaches.tolist()):
        near = []
        for reference, reach in zip(domain.references.numpy(), reaches, strict=True):
            apart = point - reference
            near.append(float(np.linalg.norm(apart @ factor if view else apart)) / reach)
        distances.append(min(near))
    return max(distances)


# The distance --------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True], ids=["64 features", "1024 features"])
def test_distances_and_threshold_are_those_of_the_definition(
    wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_ROWS", 37)  # several passes over parts
    data = shuffled(DIGITS)[:400]
    if wide:
        noise = np.random.default_rng(1).normal(0, 0.1, (400, 1024))
        data = np.kron(data.reshape(-1, 8, 8), np.ones((1, 4, 4))).reshape(400, -1) + noise
    domain = fitted(data, 0.05, 300, 60)

    assert np.allclose(domain.space.mean, data[:300].mean(0))
    spread = data[:300].std(0)
    assert np.allclose(domain.space.deviation[spread > 0], spread[spread > 0])
    held_back = sorted(by_hand(domain, row) for row in data[300:360])
    assert domain.threshold == pytest.approx(held_back[threshold_rank(60, 0.05) - 1], rel=1e-8)
    new = torch.tensor(data[360:])
    hand = [by_hand(domain, row) for row in new]
    assert domain.distances(new).tolist() == pytest.approx(hand, rel=1e-8)
    for row, distance in zip(new, hand, strict=True):
        [found] = domain.outside([row])
        if distance > domain.threshold:
            assert found == {
                "distance": pytest.approx(distance, rel=1e-8),
                "threshold": domain.threshold,
            }
        else:
            assert found is None


def test_whitened_references_have_nothing_in_common() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(size=(3000, 1))
    rows = np.concatenate([base, base + 0.1 * generator.normal(size=(3000, 4))], 1)
    domain = fitted(rows, 0.1, 2900, 100)
    white = domain.references @ domain.factor
    assert abs(np.corrcoef(domain.references.T.numpy())).min() > 0.9
    assert np.allclose(np.corrcoef(white.T.numpy()), np.eye(5), atol=0.1)


def test_a_sample_is_as_far_alone_as_in_a_batch_and_after_it_was_kept() -> None:
    data = shuffled(DIGITS)
    domain = fitted(data, 0.02, 400, 100)
    kept = Domain.of(load(save(domain.tensors())))
    rows = torch.tensor(data[500:564])
    alone = torch.cat([domain.distances(row[None]) for row in rows])
    assert torch.allclose(domain.distances(rows), alone, rtol=1e-9)
    assert torch.equal(kept.distances(rows), domain.distances(rows))
    assert kept.threshold == domain.threshold
    inside = rows[alone <= domain.threshold]
    assert domain.holds(inside) and not domain.holds(torch.cat([inside, -rows[:1]]))


def test_large_samples_are_looked_at_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data = shuffled(DIGITS)
    domain = fitted(data, 0.1, 200, 60)
    rows = torch.tensor(data[260:360])
    wanted = domain.outside([*rows])
    monkeypatch.setattr("superduper.serving.domain.NUMBERS", 7 * 64)
    parted = Domain.of(domain.tensors())
    sizes: list[int] = []
    distances = parted.distances
    monkeypatch.setattr(
        parted, "distances", lambda rows: sizes.append(len(rows)) or distances(rows)
    )
    found = parted.outside([*rows])
    assert [each is None for each in found] == [each is None for each in wanted]
    assert not parted.holds(rows) and max(sizes) == 7


def test_the_same_seed_gives_the_same_reference() -> None:
    data = shuffled(DIGITS)
    first, same, other = (fitted(data, 0.02, 1300, 200, seed).tensors() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["references"], other["references"])
    assert first["references"].shape == (1000, 64)


def test_what_is_kept_is_bounded_whatever_the_size_of_a_sample() -> None:
    generator = np.random.default_rng(0)
    domain = fitted(generator.normal(size=(150, 20_000)), 0.1, 100, 50)
    assert domain.references.shape == (100, FEATURES)
    assert len(save(domain.tensors())) < 20_000 * 24 + (100 + FEATURES) * FEATURES * 8 + 10_000


def test_samples_with_which_nothing_can_be_compared_are_out_of_domain() -> None:
    domain = fitted(shuffled(DIGITS), 0.1, 200, 50)
    sound = torch.tensor(shuffled(DIGITS)[0])
    wrong = [torch.zeros(63), torch.full((64,), math.nan), sound.clone(), "text", (), {}]
    wrong[2][5] = math.inf
    found = domain.outside([sound, Failure({"type": "E", "message": "m"}), *wrong])
    assert found[:2] == [None, None]
    assert found[2:] == [{"distance": None, "threshold": domain.threshold}] * len(wrong)
    assert not domain.holds(torch.zeros(2, 63)) and domain.outside([]) == []


def test_parts_of_a_sample_are_compared_in_one_order() -> None:
    parts = {"b": torch.tensor([3, 4]), "a": (torch.tensor(1.0), torch.tensor([[2.0]]))}
    rows = as_rows(parts, 1)
    assert rows is not None and rows.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    batch = as_rows({"b": torch.tensor([[3], [5]]), "a": torch.tensor([1.0, 2.0])}, 2)
    assert batch is not None and batch.tolist() == [[1.0, 3.0], [2.0, 5.0]]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(np.ones((40, 3)), id="all the same"),
        pytest.param(np.arange(40)[:, None] % 2, id="two values"),
        pytest.param(np.eye(40)[:, :30], id="more features than documents"),
    ],
)
def test_poor_data_gives_finite_distances(rows: Any) -> None:
    domain = fitted(rows, 0.1, 20, 20)
    assert math.isfinite(domain.threshold)
    assert turned_away(domain, rows[20:]) <= 0.1
    assert turned_away(domain, rows[:1] + 1000.0) == 1


def test_one_training_document_is_a_reference() -> None:
    domain = fitted(DIGITS, 0.1, 1, 30)
    assert turned_away(domain, DIGITS[:1]) == 0


def test_numbers_that_are_not_finite_cannot_be_learned_from() -> None:
    rows = np.ones((50, 2))
    rows[3, 1] = np.nan
    with pytest.raises(InvalidInput, match="infinite or NaN"):
        fitted(rows, 0.1, 20, 30)


# The share of ordinary documents -------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "share", "rank"),
    [(99, 0.01, 99), (199, 0.01, 198), (360, 0.01, 358), (9, 0.1, 9), (99, 0.29, 71), (1, 0.5, 1)],
)
def test_the_threshold_is_the_distance_of_that_rank(count: int, share: float, rank: int) -> None:
    assert threshold_rank(count, share) == rank


@pytest.mark.parametrize(
    ("count", "share", "needed"), [(98, 0.01, 99), (0, 0.5, 1), (18, 0.05, 19)]
)
def test_too_few_documents_are_refused_with_the_number_needed(
    count: int, share: float, needed: int
) -> None:
    with pytest.raises(InvalidInput, match=f"at least {needed} documents .* there are {count}:"):
        threshold_rank(count, share)
    assert threshold_rank(needed, share) == needed


@pytest.mark.parametrize("share", [0.02, 0.1])
@pytest.mark.parametrize("name", ["digits", "heavy tails"])
def test_ordinary_documents_are_turned_away_no_more_often_than_allowed(
    name: str, share: float
) -> None:
    """Over many ways to split: on average `share` at most, and no less than one in n + 1 below."""
    generator = np.random.default_rng(5)
    data = DIGITS if name == "digits" else generator.standard_t(1.5, size=(1000, 6))
    splits, train, held_back = 60, 200, 99
    rates = []
    for seed in range(splits):
        rows = shuffled(data, seed)[: train + held_back + 400]
        rates.append(turned_away(fitted(rows, share, train, held_back, seed), rows[299:]))
    # One rate has a Beta(k, n + 1 - k) distribution; five standard errors of their mean.
    error = 5 * math.sqrt(share * (1 - share) / (held_back + 2) / splits)
    assert share - 1 / (held_back + 1) - error < np.mean(rates) < share + error


# Nonsense ------------------------------------------------------------------------------------


def test_nonsense_among_digits_is_turned_away() -> None:
    generator = np.random.default_rng(0)
    rows = shuffled(DIGITS)
    domain, new = fitted(rows, 0.01, 1300, 350), rows[1650:]
    nonsense = {
        "noise": generator.uniform(0, 16, (300, 64)),
        "inverted": 16 - new,
        "blank": np.zeros((1, 64)),
        "white": np.full((1, 64), 16.0),
        "shuffled pixels": np.array([generator.permutation(row) for row in new]),
        "one other order of pixels": new[:, generator.permutation(64)],
    }
    rates = {name: turned_away(domain, rows) for name, rows in nonsense.items()}
    assert rates == {name: pytest.approx(1, abs=0.05) for name in nonsense}
    assert turned_away(domain, new) < 0.05


def test_nonsense_among_measurements_is_turned_away() -> None:
    """More than plain Euclidean distance does: a value that does not go with the others."""
    generator = np.random.default_rng(0)
    rows = shuffled(CANCER, 1)
    domain, new = fitted(rows, 0.02, 340, 120), rows[460:]
    columns = generator.integers(0, new.shape[1], len(new))
    far = new.copy()
    far[np.arange(len(new)), columns] += 20 * rows.std(0)[columns]
    nonsense = {
        "one value far outside": far,
        "all in another unit": new * 10,
        "nothing measured": np.zeros((1, new.shape[1])),
        "each value in the next column": np.roll(new, 1, 1),
        "each value of another row": np.stack([generator.permutation(c) for c in new.T], 1),
    }
    rates = {name: turned_away(domain, rows) for name, rows in nonsense.items()}
    assert rates == {name: pytest.approx(1, abs=0.05) for name in nonsense}
    assert turned_away(domain, new) < 0.08
