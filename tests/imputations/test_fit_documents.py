"""Which documents a fit learns from, and which it leaves out."""

import pytest
import torch

from superduper.errors import InvalidInput, UserCodeError
from superduper.imputations.fitting.documents import documents
from superduper.imputations.provenance import fill_record
from tests.imputations.fitting import Fitting, ids_of, points


def test_documents_that_fail_are_listed_and_skipped(fitting: Fitting) -> None:
    fitting.insert(points(60))
    fitting.insert({100: (torch.zeros(2), "zebra"), 101: ("no tensor", "low")})
    fitting.insert({102: (torch.zeros(3), "low"), 103: ({"dtype": "x"}, "low")})
    fitting.register_all()
    run = fitting.fit(fitting.declare(max_epochs=2))
    assert run["skipped"]["count"] == 4
    reasons = {each["document"]: each["error"] for each in run["skipped"]["first"]}
    assert set(reasons) == {100, 101, 102, 103}
    assert reasons[100]["type"] == "KeyError" and "zebra" in reasons[100]["message"]
    assert "shape (3,), that of document 0 has shape (2,)" in reasons[102]["message"]
    assert sum(fold["n"] for fold in run["data"].values()) == 60


def test_more_than_half_failing_fails_the_fit_and_says_why(fitting: Fitting) -> None:
    fitting.insert(points(10))
    fitting.insert({100 + i: (torch.zeros(2), "zebra") for i in range(11)})
    fitting.register_all()
    record = fitting.declare()
    with pytest.raises(
        UserCodeError, match=r"11 of 21 documents .*document 100: KeyError: 'zebra'"
    ):
        fitting.fit(record)
    assert fitting.run_of(record)["status"] == "failed"
    error = fitting.imputations.get("docs", record.name).error
    assert error is not None and "11 of 21 documents" in error["message"]


def test_a_value_that_we_filled_is_never_learned_from(fitting: Fitting) -> None:
    fitting.insert(points(40))
    ours = fill_record(imputation="i", version=1, at=1, inputs="0" * 32, value="zebra")
    fitting.insert(
        {100: (torch.zeros(2), "zebra"), 101: (torch.zeros(2), "low")}, _fill={"y": ours}
    )
    fitting.register_all()
    record = fitting.declare(max_epochs=1)
    read = [document["_id"] for document in documents(fitting.database, record)]
    assert 100 not in read and 101 in read  # 101 was filled, then corrected by a person
    run = fitting.fit(record)
    assert run["skipped"]["count"] == 0
    assert sum(fold["n"] for fold in run["data"].values()) == 41


def test_documents_are_chosen_by_fields_filter_and_null(fitting: Fitting) -> None:
    fitting.insert(points(5))
    fitting.docs.insert_many(
        [
            {"_id": "no y", "x": [1.0, 2.0]},
            {"_id": "no x", "y": "low"},
            {"_id": "null y", "x": [1.0, 2.0], "y": None},
            {"_id": "left out", "x": [1.0, 2.0], "y": "low", "old": True},
            {"_id": "given", "x": [1.0, 2.0], "y": "low"},
        ]
    )
    fitting.register_all()
    record = fitting.declare(filter={"old": {"$ne": True}})
    read = [document["_id"] for document in documents(fitting.database, record)]
    assert read == [0, 1, 2, 3, 4, "given"]


def test_without_validation_documents_training_documents_are_used(fitting: Fitting) -> None:
    train = ids_of("train", 20)
    fitting.insert(dict(zip(train, points(20).values(), strict=True)))
    fitting.register_all()
    run = fitting.fit(fitting.declare(max_epochs=2))
    assert run["validated_on"] == "train"
    assert run["data"]["valid"]["n"] == 0
    assert run["scored"] == {"fold": "train", **run["data"]["train"]}


def test_a_given_fold_decides(fitting: Fitting) -> None:
    fitting.insert(points(20), _fold="train")
    fitting.insert(points(5, 100), _fold="valid")
    fitting.insert(points(4, 200), _fold="test")
    fitting.register_all()
    run = fitting.fit(fitting.declare(max_epochs=1))
    assert [run["data"][fold]["n"] for fold in ("train", "valid", "test")] == [20, 5, 4]


def test_no_documents_and_no_training_documents_are_said_so(fitting: Fitting) -> None:
    fitting.register_all()
    record = fitting.declare()
    with pytest.raises(InvalidInput, match="nothing to train on: no document has all of 'x', 'y'"):
        fitting.fit(record)
    fitting.insert(points(3), _fold="test")
    with pytest.raises(InvalidInput, match="none of the 3 usable documents is in the fold 'train'"):
        fitting.fit(record)
