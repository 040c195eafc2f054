"""The client package: connecting, databases, and what it must not import."""

import subprocess
import sys
from typing import Any

import bson
import pytest
import torch

import superduper_client
from superduper import errors
from tests.client.answering import Answers, Asked, Reply, result


def serve_database(asked: Asked) -> Reply:
    """A little of what a server of the database `shop` answers."""
    if asked.path == "/v1/status":
        return result({"database": "shop"})
    if asked.path.endswith("/documents"):
        return result({"inserted_ids": [row["_id"] for row in asked.document["documents"]]}, 201)
    if asked.path.endswith("/documents/stream"):
        row = {"_id": 1, "x": bson.Binary(b"\x27\x00" + bytes(8), 9)}
        return Reply(200, bson.encode(row))
    if asked.path.endswith("/predict"):
        return result({"outputs": asked.document["inputs"], "version": 1})
    return result({"count": 5})


def test_the_facade_works_over_http(answers: Answers) -> None:
    answers.replies = [serve_database]
    with superduper_client.connect(answers.url, token="t") as client:
        docs = client["shop"]["documents"]

        inserted = docs.insert_one({"_id": 7, "x": torch.zeros(2)})
        assert inserted.inserted_id == 7
        assert docs.count_documents({}) == 5
        assert torch.equal(list(docs.find())[0]["x"], torch.zeros(2))
        assert torch.equal(docs.predict("m", torch.eye(2)), torch.eye(2))

    assert [asked.path for asked in answers.asked].count("/v1/status") == 1
    assert {asked.headers["authorization"] for asked in answers.asked} == {"Bearer t"}


def test_another_database_than_the_one_served_is_named(answers: Answers) -> None:
    answers.replies = [serve_database]
    with superduper_client.connect(answers.url) as client:
        docs = client["warehouse"]["documents"]  # nothing is asked yet
        assert answers.asked == []

        for ask in (lambda: docs.count_documents({}), lambda: list(docs.find())):
            with pytest.raises(
                errors.NotFound,
                match=r"serves the database 'shop', not 'warehouse': use client\['shop'\]",
            ):
                ask()
        assert client["shop"]["documents"].count_documents({}) == 5
    assert [asked.path for asked in answers.asked].count("/v1/status") == 1


def test_url_and_token_may_come_from_the_environment(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERDUPER_URI", answers.url)
    monkeypatch.setenv("SUPERDUPER_TOKEN", "from_environment")
    answers.replies = [serve_database]

    with superduper_client.connect() as client:
        assert client.url == answers.url
        client["shop"]["documents"].count_documents({})

    assert answers.asked[0].headers["authorization"] == "Bearer from_environment"


@pytest.mark.parametrize("url", [None, "mongodb://user:secret@h/db", "embedded:./here", "shop"])
def test_other_addresses_are_for_the_core(url: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPERDUPER_URI", raising=False)

    with pytest.raises(errors.InvalidInput, match=r"superduper\.connect\(\) takes the others") as e:
        superduper_client.connect(url)
    assert "secret" not in str(e.value)


def test_a_client_shows_its_url_and_no_token(answers: Answers) -> None:
    client = superduper_client.connect(answers.url + "/", token="secret")

    assert repr(client) == f"<Client {answers.url}>"
    client.close()


def test_the_client_imports_nothing_heavy() -> None:
    script = """
import sys, time
began = time.perf_counter()
import superduper_client
seconds = time.perf_counter() - began
superduper_client.connect("http://127.0.0.1:9")["a"]["b"]
heavy = {"torch", "numpy", "PIL", "fastapi", "uvicorn", "starlette", "orjson",
         "superduper.store", "superduper.service", "superduper.connection", "superduper.jobs",
         "superduper.serving", "superduper.training", "superduper.imputations", "superduper_server"}
print(f"import superduper_client: {seconds * 1000:.0f} ms")
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
