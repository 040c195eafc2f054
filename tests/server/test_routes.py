"""Every command over HTTP, in JSON and in BSON."""

from typing import Any

import bson
import pytest
from bson import ObjectId
from fastapi import FastAPI
from pymongo.database import Database
from starlette.testclient import TestClient

from superduper import commands
from superduper.command import PLURALS, words_of
from superduper_server.routes import untraced

DOCUMENTS = "/v1/collections/docs/documents"
BSON_HEADERS = {"Content-Type": "application/bson", "Accept": "application/bson"}


def test_every_command_has_its_route(app: FastAPI) -> None:
    for command in commands.all_commands():
        route = command.route
        paths = [route.path]
        if "{kinds}" in route.path:
            paths = [route.path.replace("{kinds}", word) for word in words_of(command).values()]
        for path in paths:
            assert app.state.table[route.method, path] == route.role


def test_a_document_goes_in_and_out(client: TestClient) -> None:
    made = client.post(DOCUMENTS, json={"documents": [{"_id": 1, "x": [1.5]}, {"x": 2}]})
    assert made.status_code == 201
    ids = made.json()["inserted_ids"]
    assert ids[0] == 1
    assert list(ids[1]) == ["$oid"]
    found = client.post(f"{DOCUMENTS}/query", json={"filter": {"x": {"$gt": 1.5}}}).json()
    assert found == {"documents": [{"_id": ids[1], "x": 2}]}
    found = client.post(f"{DOCUMENTS}/query", json={"filter": {"_id": ids[1]}}).json()
    assert len(found["documents"]) == 1
    assert client.post(f"{DOCUMENTS}/count", json={}).json() == {"count": 2}


def test_a_document_is_changed_and_deleted(client: TestClient) -> None:
    client.post(DOCUMENTS, json={"documents": [{"_id": n, "x": n} for n in range(5)]})
    changed = client.post(
        f"{DOCUMENTS}/update",
        json={"filter": {"x": {"$gte": 3}}, "update": {"$set": {"y": "b"}}, "many": True},
    )
    assert changed.json() == {"n": 2, "nModified": 2}
    replaced = client.post(
        f"{DOCUMENTS}/replace", json={"filter": {"_id": 0}, "replacement": {"z": 1}}
    )
    assert replaced.json() == {"n": 1, "nModified": 1}
    gone = client.post(f"{DOCUMENTS}/delete", json={"filter": {"y": "b"}, "many": True})
    assert gone.json() == {"n": 2}
    left = client.post(f"{DOCUMENTS}/query", json={"sort": [["_id", -1]], "limit": 2}).json()
    assert [row["_id"] for row in left["documents"]] == [2, 1]


def test_bson_in_and_out(client: TestClient) -> None:
    id = ObjectId()
    body = bson.encode({"documents": [{"_id": id, "x": b"bytes", "n": 2**40}]})
    made = client.post(DOCUMENTS, content=body, headers=BSON_HEADERS)
    assert made.status_code == 201
    assert made.headers["content-type"] == "application/bson"
    assert bson.decode(made.content) == {"result": {"inserted_ids": [id]}}
    body = bson.encode({"filter": {"_id": id}})
    found = client.post(f"{DOCUMENTS}/query", content=body, headers=BSON_HEADERS)
    assert bson.decode(found.content)["result"]["documents"][0]["x"] == b"bytes"
    missing = client.get("/v1/jobs/nothing", headers=BSON_HEADERS)
    assert missing.status_code == 404
    error = bson.decode(missing.content)["error"]
    assert error["code"] == "not_found"
    assert error["request_id"] == missing.headers["x-request-id"]


def test_a_body_may_be_bson_and_the_answer_json(client: TestClient) -> None:
    headers = {"Content-Type": "application/bson"}
    answer = client.post(f"{DOCUMENTS}/count", content=bson.encode({}), headers=headers)
    assert answer.json() == {"count": 0}


def test_dates_beyond_python_are_the_databases_business(client: TestClient) -> None:
    body = bson.encode({"documents": [{"_id": 1, "at": bson.DatetimeMS(2**60)}]})
    answer = client.post(DOCUMENTS, content=body, headers=BSON_HEADERS)
    assert answer.status_code in (201, 422)  # MongoDB takes them, the embedded store does not


def test_path_and_body_do_not_mix(client: TestClient) -> None:
    for extra, why in (
        ({"collection": "other"}, "belongs in the path"),
        ({"command": 1}, "'command' is not a field"),
        ({"filtre": {}}, "'filtre' is not a field"),
    ):
        answer = client.post(f"{DOCUMENTS}/count", json=extra)
        assert answer.status_code == 422
        assert why in answer.json()["error"]["message"]
    assert client.post(f"{DOCUMENTS}/count?filter=x", json={}).status_code == 422


def test_queries_are_checked(client: TestClient) -> None:
    assert client.get("/v1/jobs?limit=5&state=failed").json() == []
    for query in ("limit=0", "limit=1001", "limit=x", "limit=1&limit=2", "unknown=1"):
        answer = client.get(f"/v1/jobs?{query}")
        assert answer.status_code == 422, query


@pytest.mark.parametrize(
    "collection", ["superduper.tokens", "system.users", "a%00b", "$cmd", "%E2%82%AC", "a" * 130]
)
def test_collections_that_are_none(client: TestClient, collection: str) -> None:
    path = f"/v1/collections/{collection}/documents/query"
    answer = client.post(path, json={})
    assert answer.status_code == 422
    assert "collection" in answer.json()["error"]["message"]


def test_a_kind_is_part_of_the_path(client: TestClient) -> None:
    for word in (*PLURALS.values(), "losss"):
        assert client.get(f"/v1/collections/docs/{word}").json() == []
        assert client.get(f"/v1/collections/docs/{word}/nothing").status_code == 404
    answer = client.get("/v1/collections/docs/models/nothing?kind=loss")
    assert answer.status_code == 422


def test_a_query_has_a_limit_and_a_stream_has_none(
    client: TestClient, database: Database[Any]
) -> None:
    database["docs"].insert_many({"_id": n, "text": "x" * 2000} for n in range(500))
    answer = client.post(f"{DOCUMENTS}/query", json={"limit": 0})
    assert answer.status_code == 422
    assert ".../documents/stream" in answer.json()["error"]["message"]
    assert client.post(f"{DOCUMENTS}/query", json={"limit": 101}).status_code == 422
    streamed = client.post(f"{DOCUMENTS}/stream", json={"filter": {"_id": {"$gte": 10}}})
    assert streamed.headers["content-type"].startswith("application/x-ndjson")
    assert len(streamed.text.splitlines()) == 490
    streamed = client.post(f"{DOCUMENTS}/stream", content=bson.encode({}), headers=BSON_HEADERS)
    assert [row["_id"] for row in bson.decode_all(streamed.content)] == list(range(500))
    limited = client.post(f"{DOCUMENTS}/stream", json={"limit": 3})
    assert len(limited.text.splitlines()) == 3
    assert client.post(f"{DOCUMENTS}/stream", json={"limit": 0, "skip": 500}).text == ""


def test_a_stream_of_a_wrong_filter_is_an_honest_error(client: TestClient) -> None:
    answer = client.post(f"{DOCUMENTS}/stream", json={"filter": {"$where": "1"}})
    assert answer.status_code == 422
    answer = client.post(f"{DOCUMENTS}/stream", json={"filter": {"x": {"$in": 3}}})
    assert answer.status_code == 422


def test_status_names_database_and_version(client: TestClient, database: Database[Any]) -> None:
    found = client.get("/v1/status").json()
    assert found["database"] == database.name
    assert found["version"]


def test_duplicate_ids_are_a_conflict(client: TestClient) -> None:
    body = {"documents": [{"_id": 1}]}
    assert client.post(DOCUMENTS, json=body).status_code == 201
    answer = client.post(DOCUMENTS, json=body)
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "already_exists"


def test_tracebacks_are_for_trainers() -> None:
    job = {
        "id": "1",
        "error": {"message": "no", "traceback": "File ..."},
        "list": [{"traceback": 1}],
    }
    assert untraced(job) == {"id": "1", "error": {"message": "no"}, "list": [{}]}


def test_only_trainers_see_them_over_http(
    client: TestClient, stranger: TestClient, token_of: Any, database: Database[Any]
) -> None:
    from superduper.jobs.queue import Queue

    queue = Queue(database)
    id = queue.put("fit", {})
    error = {"type": "ValueError", "message": "no", "traceback": "File secret.py"}
    database["superduper.jobs"].update_one({"_id": id}, {"$set": {"error": error}})
    assert "secret.py" in client.get(f"/v1/jobs/{id}").text
    reader = {"Authorization": f"Bearer {token_of('reader')}"}
    answer = stranger.get(f"/v1/jobs/{id}", headers=reader)
    assert answer.json()["error"]["message"] == "no"
    assert "secret.py" not in answer.text


def test_request_ids(client: TestClient) -> None:
    given = client.get("/healthz", headers={"X-Request-ID": "abc-123"})
    assert given.headers["x-request-id"] == "abc-123"
    made = client.get("/healthz", headers={"X-Request-ID": "a b\tc"})
    assert made.headers["x-request-id"] not in ("a b\tc", "")
    assert made.headers["x-content-type-options"] == "nosniff"
