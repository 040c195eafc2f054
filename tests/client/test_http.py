"""Commands over HTTP, against a real server that says what it was asked."""

import json
import threading
from typing import Any

import bson
import pytest
from bson import ObjectId

from superduper import commands, errors
from superduper.command import Command, build
from superduper_client import wire
from superduper_client.http import HttpTransport
from tests.client.answering import JSON, PREDICT, STATUS, Answers, Reply, refusal, result

# What is asked -------------------------------------------------------------------------------


def test_a_reading_command_goes_into_path_and_query(
    answers: Answers, transport: HttpTransport
) -> None:
    answers.replies = [result([{"name": "m"}])]

    found = transport.send(
        build(commands.ShowComponent, collection="docs", kind="loss", name="m", version=3)
    )

    assert found == [{"name": "m"}]
    (asked,) = answers.asked
    assert (asked.method, asked.path) == ("GET", "/v1/collections/docs/losses/m")
    assert asked.query == {"version": "3"}
    assert asked.body == b""
    assert asked.headers["authorization"] == "Bearer sd_secret"
    assert asked.headers["accept"] == "application/bson"
    assert "content-type" not in asked.headers


def test_a_writing_command_goes_into_path_and_body(
    answers: Answers, transport: HttpTransport
) -> None:
    sent = {"_id": ObjectId(), "x": bson.Binary(b"\x27\x00" + bytes(8), 9), "n": None}
    answers.replies = [result({"inserted_ids": [sent["_id"]]}, status=201)]

    command = build(commands.InsertDocuments, collection="a.b", documents=[sent], ordered=False)
    assert transport.send(command) == {"inserted_ids": [sent["_id"]]}

    (asked,) = answers.asked
    assert (asked.method, asked.path) == ("POST", "/v1/collections/a.b/documents")
    assert asked.headers["content-type"] == "application/bson"
    assert asked.document == {"documents": [sent], "ordered": False}


def test_what_is_none_or_not_given_is_left_out(answers: Answers, transport: HttpTransport) -> None:
    policies = [{"name": "early", "arguments": {"patience": 3}}]
    answers.replies = [result({"name": "i"}, status=201)]
    transport.send(
        build(
            commands.CreateImputation,
            collection="docs",
            name=None,
            model="m",
            model_key=["a", "b.c"],
            target_key="y",
            loss=None,
            metrics=["accuracy"],
            policies=policies,
        )
    )

    (asked,) = answers.asked
    assert asked.path == "/v1/collections/docs/imputations"
    assert asked.document == {
        "model": "m",
        "model_key": ["a", "b.c"],
        "target_key": "y",
        "metrics": ["accuracy"],
        "policies": policies,
    }


def test_delete_has_a_query_and_put_the_name_in_the_path(
    answers: Answers, transport: HttpTransport
) -> None:
    transport.send(
        build(commands.DeleteComponent, collection="docs", kind="model", name="m", version=1)
    )
    transport.send(
        build(
            commands.RegisterComponent, collection="d", kind="metric", name="f", sealed={"a": b"b"}
        )
    )

    delete, put = answers.asked
    assert (delete.method, delete.path) == ("DELETE", "/v1/collections/docs/models/m")
    assert (delete.query, delete.body) == ({"version": "1"}, b"")
    assert (put.method, put.path) == ("PUT", "/v1/collections/d/metrics/f")
    assert put.document == {"sealed": {"a": b"b"}}


SAMPLES: dict[str, Any] = {
    "collection": "docs",
    "kind": "model",
    "name": "a_name",
    "id": "an id/..?#%",
    "version": 2,
    "documents": [{"a": 1}],
    "filter": {"a": {"$gt": 1}},
    "update": {"$set": {"a": 1}},
    "replacement": {"a": 1},
    "sealed": {"code": b"c"},
    "inputs": [1],
    "input": 1,
    "model": "m",
    "model_key": "x",
    "target_key": "y",
    "key": "x",
    "field": "y",
    "state": "pending",
    "form": "bf16",
}


@pytest.mark.parametrize("command", commands.all_commands())
def test_every_command_arrives_where_its_route_says(
    answers: Answers, transport: HttpTransport, command: type[Command]
) -> None:
    required = [name for name, row in command.model_fields.items() if row.is_required()]
    answers.replies = [result({"inserted_ids": []})]

    transport.send(build(command, **{name: SAMPLES[name] for name in required}))

    (asked,) = answers.asked
    assert asked.method == command.route.method
    expected = command.route.path.format(
        kinds="models", **SAMPLES | {"id": "an%20id%2F..%3F%23%25"}
    )
    assert asked.path == expected
    placed = {"kind"} | {name for name in SAMPLES if f"{{{name}}}" in command.route.path}
    sent = asked.query if asked.method in ("GET", "DELETE") else asked.document
    assert sent.keys() == set(required) - placed


@pytest.mark.parametrize("id", ["", ".", ".."])
def test_ids_that_mean_something_else_in_a_path_are_refused(
    answers: Answers, transport: HttpTransport, id: str
) -> None:
    with pytest.raises(errors.InvalidInput, match="id: .* is not the name of anything"):
        transport.send(build(commands.CancelJob, id=id))
    assert answers.asked == []


def test_long_inserts_go_in_parts(answers: Answers, transport: HttpTransport) -> None:
    documents = [{"_id": number, "x": bytes(7_000_000)} for number in range(5)]
    answers.replies = [
        lambda asked: result({"inserted_ids": [d["_id"] for d in asked.document["documents"]]})
    ]

    command = build(commands.InsertDocuments, collection="docs", documents=documents)

    assert transport.send(command) == {"inserted_ids": [0, 1, 2, 3, 4]}
    assert [len(asked.document["documents"]) for asked in answers.asked] == [2, 2, 1]
    assert all(len(asked.body) <= wire.INSERT_BYTES + 1000 for asked in answers.asked)


def test_what_bson_does_not_know_is_not_sent(answers: Answers, transport: HttpTransport) -> None:
    with pytest.raises(errors.InvalidInput, match="cannot be sent: .*object"):
        transport.send(build(commands.CountDocuments, collection="d", filter={"a": object()}))
    assert answers.asked == []


def test_connections_are_kept(answers: Answers, transport: HttpTransport) -> None:
    for _ in range(5):
        transport.send(STATUS)

    assert len({id(asked.connection) for asked in answers.asked}) == 1


def test_several_threads_may_send(answers: Answers, transport: HttpTransport) -> None:
    answers.replies = [lambda asked: result(asked.document["inputs"])]
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        inputs = [number]
        found[number] = transport.send(
            build(commands.Predict, collection="d", name="m", inputs=inputs)
        )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert found == {number: [number] for number in range(16)}


# What is answered ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (422, errors.InvalidInput),
        (413, errors.TooLarge),
        (403, errors.NotAllowed),
        (404, errors.NotFound),
        (409, errors.AlreadyExists),
        (409, errors.InUse),
        (409, errors.ArtifactRejected),
        (422, errors.UserCodeError),
        (503, errors.ChildDied),
        (504, errors.TimedOut),
        (501, errors.MissingExtra),
    ],
)
def test_the_same_class_of_error_arrives(
    answers: Answers, transport: HttpTransport, status: int, kind: type[errors.SuperduperError]
) -> None:
    answers.replies = [refusal(status, kind.code, "what, which, what to do")]

    with pytest.raises(kind, match="what, which, what to do") as caught:
        transport.send(PREDICT)

    assert type(caught.value) is kind
    assert caught.value.request_id == "r-1"  # type: ignore[attr-defined]
    assert len(answers.asked) == 1


def test_errors_may_come_as_json(answers: Answers, transport: HttpTransport) -> None:
    body = json.dumps({"error": {"code": "not_found", "message": "no such thing"}}).encode()
    answers.replies = [Reply(404, body, {"Content-Type": "application/json; charset=utf-8"})]

    with pytest.raises(errors.NotFound, match="^no such thing$"):
        transport.send(STATUS)


def test_without_a_valid_token_the_error_says_where_to_put_one(
    answers: Answers, transport: HttpTransport
) -> None:
    answers.replies = [refusal(401, "unauthorized", "a valid token is needed")]

    with pytest.raises(errors.Unauthorized, match=r"needed \(pass token= .*SUPERDUPER_TOKEN"):
        transport.send(STATUS)


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        (Reply(404, b"<html>", {"Content-Type": "text/html"}), errors.SuperduperError, "HTTP 404"),
        (Reply(200, b"hello", {"Content-Type": "text/plain"}), errors.SuperduperError, "HTTP 200"),
        (Reply(200, b"not bson"), errors.SuperduperError, "not as a Superduper server does"),
        (Reply(200, b"[1]", {"Content-Type": JSON}), errors.SuperduperError, "HTTP 200"),
        (Reply(200, bson.encode({"a": 1})), errors.SuperduperError, "HTTP 200"),
        (Reply(500, bson.encode({"error": "x"})), errors.SuperduperError, "HTTP 500"),
        (Reply(401, b"", {}), errors.Unauthorized, "pass token="),
        (Reply(403, b"", {}), errors.NotAllowed, "HTTP 403"),
        (Reply(413, b"", {}), errors.TooLarge, "HTTP 413"),
        (Reply(308, b"", {"Location": "https://elsewhere/"}), errors.InvalidInput, "redirects"),
    ],
)
def test_answers_of_others_are_told_apart(
    answers: Answers,
    transport: HttpTransport,
    reply: Reply,
    kind: type[errors.SuperduperError],
    text: str,
) -> None:
    answers.replies = [reply]

    with pytest.raises(errors.SuperduperError, match=text) as caught:
        transport.send(STATUS)
    assert type(caught.value) is kind
    assert answers.url in str(caught.value)
    assert "secret" not in str(caught.value)
