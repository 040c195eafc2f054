"""A document's fold is decided by itself alone, and stays."""

from collections import Counter

from bson import ObjectId

from superduper.imputations.fitting.folds import fold_of, fold_of_id


def test_a_tenth_each_is_kept_for_validation_and_test() -> None:
    counts = Counter(fold_of_id(number) for number in range(10_000))
    assert abs(counts["valid"] - 1_000) < 100
    assert abs(counts["test"] - 1_000) < 100


def test_folds_stay_the_same_for_life() -> None:
    """These were computed once: a change here moves users' documents from test to training."""
    others = [number for number in range(12) if fold_of_id(number) != "train"]
    assert others == [5, 8]
    assert fold_of_id(5) == fold_of_id(8) == "test"
    assert fold_of_id("a") == "valid"
    assert fold_of_id(ObjectId("65f000000000000000000000")) == "train"


def test_a_given_fold_wins_and_nonsense_is_ignored() -> None:
    for number in range(50):
        assert fold_of({"_id": number, "_fold": "test"}) == "test"
        assert fold_of({"_id": number, "_fold": "holdout"}) == fold_of_id(number)
        assert fold_of({"_id": number, "_fold": None}) == fold_of_id(number)
