"""Which versions go live, and by which comparison."""

import torch

from tests.imputations.fitting import Classifier, Fitting, ids_of, points


def test_a_worse_version_does_not_go_live_and_a_better_one_does(fitting: Fitting) -> None:
    fitting.insert(points(120))
    fitting.register_all()
    record = fitting.declare(max_epochs=10, lr=0.01)
    assert fitting.fit(record)["promoted"]
    change = fitting.imputations.documents.update_one
    change({"_id": record.id}, {"$set": {"spec.max_epochs": 1}})
    worse = fitting.fit(record)
    assert not worse["promoted"] and "not better than" in worse["reason"]
    assert fitting.imputations.get("docs", record.name).active == 1
    assert fitting.registry.get("docs", "model", "model").version == 2
    change({"_id": record.id}, {"$set": {"spec.max_epochs": 40}})
    assert fitting.fit(record)["promoted"]
    assert fitting.imputations.get("docs", record.name).active == 3


def test_versions_are_compared_on_the_same_documents(fitting: Fitting) -> None:
    """The first version looks perfect on its one validation document; with more it is not."""
    valid = ids_of("valid", 30)
    fitting.insert({i: value for i, value in points(100, 10_000).items() if i not in valid})
    fitting.docs.update_many({}, {"$set": {"_fold": "train"}})
    fitting.insert({valid[0]: (torch.tensor([30.0, 30.0]), "high")})
    model = Classifier()
    model.layer.weight.data = torch.tensor([[-0.1, -0.1], [0.1, 0.1]])
    fitting.register_all(model)
    record = fitting.declare(max_epochs=1, lr=0.002)
    first = fitting.fit(record)
    fitting.insert(dict(zip(valid[1:], points(29, seed=5).values(), strict=True)))
    fitting.imputations.documents.update_one(
        {"_id": record.id}, {"$set": {"spec.max_epochs": 20, "spec.lr": 0.02}}
    )
    second = fitting.fit(record)
    assert second["valid_hash"] != first["valid_hash"]
    assert second["best"]["loss"] > first["best"]["loss"]
    assert second["promoted"], second["reason"]


def test_the_policy_for_going_live(fitting: Fitting) -> None:
    fitting.insert(points(40))
    fitting.register_all()
    record = fitting.declare(max_epochs=2, promote="never")
    assert fitting.fit(record)["promoted"]  # the first one, or nothing would ever be filled
    assert not fitting.fit(record)["promoted"]
    fitting.imputations.documents.update_one(
        {"_id": record.id}, {"$set": {"spec.promote": "always"}}
    )
    assert fitting.fit(record)["promoted"]
