"""Documents that come as a stream over HTTP, whole, cut off or refused."""

from typing import Any

import bson
import pytest

from superduper import commands, errors
from superduper.command import build
from superduper_client import wire
from superduper_client.http import HttpTransport
from tests.client.answering import JSON, STATUS, Answers, Reply, refusal, result


def find(**query: Any) -> commands.FindDocuments:
    return build(commands.FindDocuments, collection="docs", limit=0, **query)


ROWS = [{"_id": number, "x": "y" * number} for number in range(200)]
ROWS_BSON = b"".join(bson.encode(row) for row in ROWS)


def test_documents_come_as_a_stream(answers: Answers, transport: HttpTransport) -> None:
    answers.replies = [Reply(200, ROWS_BSON)]

    assert list(transport.stream(find(filter={"a": 1}, sort=[("a", -1)]))) == ROWS

    (asked,) = answers.asked
    assert (asked.method, asked.path) == ("POST", "/v1/collections/docs/documents/stream")
    assert asked.document == {"filter": {"a": 1}, "sort": [["a", -1]], "limit": 0}
    assert asked.headers["accept"] == "application/bson"


def test_a_stream_may_be_empty_or_left_early(answers: Answers, transport: HttpTransport) -> None:
    answers.replies = [Reply(200, b""), Reply(200, ROWS_BSON), result("next")]

    assert list(transport.stream(find())) == []
    rows = transport.stream(find())
    assert next(rows) == ROWS[0]
    rows.close()  # type: ignore[attr-defined]
    assert transport.send(STATUS) == "next"


def test_a_stream_is_lazy(answers: Answers, transport: HttpTransport) -> None:
    transport.stream(find())

    assert answers.asked == []


def test_a_stream_that_is_cut_is_an_error(answers: Answers, transport: HttpTransport) -> None:
    answers.replies = [Reply(200, ROWS_BSON, cut=1000)]
    found = []

    with pytest.raises(errors.NotReady, match="broke during POST .*documents/stream"):
        found += transport.stream(find())
    assert len(answers.asked) == 1

    with pytest.raises(errors.NotReady, match="ended too early"):
        list(wire.split_rows(iter([ROWS_BSON[:-1]])))
    with pytest.raises(errors.SuperduperError, match="damaged"):
        list(wire.split_rows(iter([b"\0\0\0\0\0"])))


@pytest.mark.parametrize("size", [1, 3, 4, 5, 100, 10_000])
def test_rows_are_found_however_they_are_cut(size: int) -> None:
    chunks = (ROWS_BSON[start : start + size] for start in range(0, len(ROWS_BSON), size))

    assert list(wire.split_rows(chunks)) == ROWS


def test_a_refused_stream_raises_and_a_busy_one_is_asked_again(
    answers: Answers, transport: HttpTransport
) -> None:
    answers.replies = [refusal(422, "invalid_input", "no such operator")]
    with pytest.raises(errors.InvalidInput, match="no such operator"):
        list(transport.stream(find()))

    answers.replies = [refusal(429, "too_many_requests"), Reply(200, ROWS_BSON)]
    assert list(transport.stream(find())) == ROWS

    answers.replies = [result(1)]
    assert list(transport.stream(find())) == [{"result": 1}]

    answers.replies = [Reply(200, b'{"result": 1}', {"Content-Type": JSON})]
    with pytest.raises(errors.SuperduperError, match="not as a Superduper server"):
        list(transport.stream(find()))
