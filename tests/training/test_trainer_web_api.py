"""A finished run is served over HTTP."""

from pathlib import Path
from typing import Any

import torch
from fastapi.testclient import TestClient
from trained import Classifier, config, data, parts

from superduper import training
from superduper.training.web import web_api


def test_a_run_answers_over_http_as_it_does_here(tmp_path: Path) -> None:
    made = parts()
    record = training.Trainer(**made, config=config(tmp_path, n_epochs=2)).train()
    features = data(30, 9).tensors[0][:5]
    with torch.no_grad():
        expected = made["model"].eval()(features).probs
    with TestClient(web_api(tmp_path / "run", Classifier())) as client:
        about = client.get("/").json()
        answer = client.post("/predict", json={"inputs": features.tolist()})
        wrong = client.post("/predict", json={"inputs": [[1, 2]]})
        assert client.post("/predict", json={"inputs": []}).status_code == 422
        assert client.post("/predict", json={"inputs": [["a"]]}).status_code == 422
    assert (about["hash"], about["epoch"]) == (record["final_hash"], 2)
    assert answer.json()["values"] == expected.argmax(1).tolist()
    assert torch.allclose(torch.tensor(answer.json()["probabilities"]), expected)
    assert wrong.status_code == 422 and "cannot take these inputs" in wrong.json()["detail"]


def test_records_are_prepared_before_they_are_predicted(tmp_path: Path) -> None:
    training.Trainer(**parts(), config=config(tmp_path, n_epochs=1)).train()

    def preprocess(records: list[Any]) -> torch.Tensor:
        return torch.tensor([[record["size"]] * 4 for record in records])

    with TestClient(web_api(tmp_path / "run", Classifier(), preprocess=preprocess)) as client:
        answer = client.post("/predict", json={"inputs": [{"size": 9.0}, {"size": -9.0}]})
    assert answer.json()["values"] == [1, 0]
