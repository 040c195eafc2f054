"""Runs and their ranking with real fits, by calls and by the command line, on both transports."""

import json

import pytest
import torch
from click.testing import CliRunner

from definitions import DIM, LABELS, SETTINGS, MyModel, documents, register
from superduper_server.cli_root import superduper

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(scope="module")
def ranked(worker, place):
    """A collection with a poor fit and a good one on the same test data, and one on other data."""
    docs = place.fresh()
    docs.insert_many(documents(150, 150))
    register(docs)
    settings = {**SETTINGS, "fill": False}
    names = []
    for name, changes in (
        ("poor", {"max_epochs": 1, "lr": 1e-6}),
        ("good", {}),
        ("other_data", {"max_epochs": 1}),
    ):
        if name == "other_data":
            docs.delete_many({"_id": {"$gte": 100}})
        torch.manual_seed(0)
        docs.create_model(name, MyModel(LABELS, DIM))
        given = {**settings, **changes, "model": name}
        docs.create_imputation(name, **given).wait(timeout=120, progress=False)
        names.append(name)
    return docs, names


def command(place, *arguments):
    """A command's answer, read as JSON, and as it is shown."""
    where = ("--uri", place.uri, "--database", place.database.name)
    results = [
        CliRunner().invoke(superduper, [*arguments, *where, *more]) for more in (["--json"], [])
    ]
    assert [result.exit_code for result in results] == [0, 0], results[0].output
    return json.loads(results[0].stdout), results[1].stdout


def test_runs_are_ranked_where_their_test_data_are_the_same(ranked):
    docs, _ = ranked
    rows = docs.highscores("accuracy")
    assert [row["imputation"].rpartition("/")[2] for row in rows] == ["other_data", "good", "poor"]
    assert len({row["test_hash"] for row in rows}) == 2
    assert rows[1]["test_hash"] == rows[2]["test_hash"] and rows[1]["value"] > rows[2]["value"]
    assert [row["rank"] for row in rows] == [1, 1, 2]
    losses = docs.highscores()  # by what each of them watched
    assert losses[1]["metric"] == "loss" and losses[1]["value"] < losses[2]["value"]
    assert len(docs.highscores("accuracy", limit=1)) == 1
    assert docs.highscores("unknown") == []


def test_runs_are_listed_newest_first(ranked):
    docs, names = ranked
    runs = docs.runs()
    assert [run["imputation"].rpartition("/")[2] for run in runs] == names[::-1]
    assert all(run["status"] == "succeeded" and run["seconds"] > 0 for run in runs)
    for run in runs:
        whole = docs.run(run["id"])
        assert whole["history"][-1]["accuracy"] >= 0 and len(whole["final_hash"]) == 64
    # Three imputations began with the same weights, two of them learned from the same documents.
    hashes = [[run["data"][fold]["hash"] for fold in ("train", "valid", "test")] for run in runs]
    assert len({run["initial_hash"] for run in runs}) == 1
    assert hashes[1] == hashes[2] and not set(hashes[0]) & set(hashes[1])


def test_the_command_ranks_the_same(ranked, place):
    docs, _ = ranked
    rows, shown = command(place, "highscores", "--collection", docs.name, "--metric", "accuracy")
    expected = docs.highscores("accuracy")
    assert [row["run"] for row in rows] == [row["run"] for row in expected]
    assert [row["value"] for row in rows] == [row["value"] for row in expected]
    lines = shown.splitlines()
    assert lines[0].split()[:4] == ["rank", "imputation", "name", "version"]
    assert [line.split()[0] for line in lines[2:]] == ["1", "1", "2"]
    best, _ = command(place, "highscores", "--collection", docs.name, "--limit", "1")
    assert len(best) == 1
