"""The client for asyncio, against a server that says what it was asked, and against a real one."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from bson import Binary
from pymongo.database import Database

import superduper_client
from superduper.errors import InvalidInput, NotFound, NotReady, TimedOut, UserCodeError
from superduper.fields.codec import encode
from superduper_client.aio import AsyncClient, AsyncHttpTransport
from superduper_server.serve import Server, make_server
from tests.client.answering import Answers, refusal, result
from tests.client.test_http import INSERT, PREDICT, STATUS, unused_port
from tests.server.running import serving
from tests.waiting import until


def ask(answers: Answers, command: Any, **options: Any) -> Any:
    async def send() -> Any:
        transport = AsyncHttpTransport(answers.url, token="sd_secret", **options)
        try:
            return await transport.send(command)
        finally:
            await transport.close()

    return asyncio.run(send())


def test_a_command_is_asked_as_the_other_client_asks_it(answers: Answers) -> None:
    answers.replies = [result({"outputs": [2], "version": 1})]
    assert ask(answers, PREDICT) == {"outputs": [2], "version": 1}
    (asked,) = answers.asked
    assert (asked.method, asked.path) == ("POST", "/v1/collections/docs/models/m/predict")
    assert asked.headers["authorization"] == "Bearer sd_secret"
    assert asked.document == {"inputs": [1]}


def test_what_only_reads_is_asked_again_while_the_server_is_busy(answers: Answers) -> None:
    busy = refusal(503, "not_ready", "not yet")
    answers.replies = [busy, busy, result({"outputs": [], "version": 1})]
    assert ask(answers, PREDICT)["version"] == 1
    assert len(answers.asked) == 3
    answers.replies = [busy]
    with pytest.raises(NotReady, match="not yet"):
        ask(answers, INSERT)  # it may have been done
    assert len(answers.asked) == 4
    answers.replies = [busy] * 100
    with pytest.raises(NotReady, match="not yet"):
        ask(answers, STATUS, retry_seconds=0.3)


def test_a_server_that_is_not_there() -> None:
    async def nobody() -> None:
        async with AsyncClient(f"http://127.0.0.1:{unused_port()}") as client:
            await client["main"]["docs"].count_documents({})

    with pytest.raises(NotReady, match="nothing answers at"):
        asyncio.run(nobody())
    with pytest.raises(InvalidInput, match="a server's URL"):
        superduper_client.aconnect("mongodb://x")


def test_tensors_travel_as_binary(answers: Answers) -> None:
    rows = [np.float32([1, 2, 3]), np.arange(6).reshape(2, 3)]

    def sent() -> list[Any]:
        found: list[Any] = answers.asked.pop().document["inputs"]
        return found

    answers.replies = [result({"database": "main"}), result({"outputs": rows_of(rows)})]
    with superduper_client.connect(answers.url) as client:
        told = client["main"]["docs"].predict("m", rows)
    first, second = sent()
    assert isinstance(first, Binary) and len(first) == 2 + 3 * 4  # nothing but the numbers
    assert isinstance(second["data"], bytes) and len(second["data"]) == 6 * 8
    assert [np.asarray(each).tolist() for each in told] == [each.tolist() for each in rows]

    async def ask() -> Any:
        async with superduper_client.aconnect(answers.url) as client:
            return await client["main"]["docs"].predict("m", rows)

    answers.replies = [result({"database": "main"}), result({"outputs": rows_of(rows)})]
    told = asyncio.run(ask())
    assert sent() == [first, second]
    assert [np.asarray(each).tolist() for each in told] == [each.tolist() for each in rows]


def rows_of(values: list[Any]) -> list[Any]:
    return [encode(value) for value in values]


def test_a_connection_is_used_again(answers: Answers) -> None:
    answers.replies = [result({"outputs": [], "version": 1})]

    async def twice() -> None:
        transport = AsyncHttpTransport(answers.url)
        for _ in range(3):
            await transport.send(PREDICT)
        await transport.close()

    asyncio.run(twice())
    assert len({id(asked.connection) for asked in answers.asked}) == 1


class Slow:
    """Takes its input in seconds."""

    def predict(self, rows: Any) -> Any:
        for row in rows:
            time.sleep(float(np.sum(row)))
        return [list(np.atleast_1d(row)) for row in rows]


@pytest.fixture
def server(database: Database[Any]) -> Iterator[Server]:
    with serving(make_server(database, insecure=True)) as server:
        with superduper_client.connect(server.url) as client:
            docs = client[database.name]["docs"]
            docs.create_model("double", lambda n: n * 2)
            docs.create_model("spell", lambda text: iter(text))
            docs.create_model("slow", Slow())
        yield server


def test_documents_and_predictions(server: Server, database: Database[Any]) -> None:
    async def work() -> None:
        async with superduper_client.aconnect(server.url) as client:
            docs = client[database.name]["docs"]
            made = await docs.insert_many([{"n": n, "x": np.float32([n, 1])} for n in range(1500)])
            assert len(made.inserted_ids) == 1500
            one = await docs.insert_one({"_id": "one", "n": -1})
            assert one.inserted_id == "one"
            assert await docs.count_documents({"n": {"$gte": 0}}) == 1500
            assert await docs.find_one("one") == {"_id": "one", "n": -1}
            assert await docs.find_one({"n": 5000}) is None
            found = [d async for d in docs.find({"n": {"$lt": 3}}, ["n"], sort=[("n", -1)])]
            assert [d["n"] for d in found] == [2, 1, 0, -1]
            many = await asyncio.gather(*(docs.predict("double", float(n)) for n in range(40)))
            assert many == [n * 2.0 for n in range(40)]
            assert await docs.predict("double", [1, 2], version=1) == [2, 4]
            assert [piece async for piece in docs.stream("spell", "abc")] == ["a", "b", "c"]
            with pytest.raises(UserCodeError, match="not iterable"):
                [piece async for piece in docs.stream("spell", 5)]
            with pytest.raises(NotFound, match="no imputation"):
                await docs.predict_imputation("nothing", 1)
            with pytest.raises(NotFound, match=f"serves the database '{database.name}'"):
                await client["other"]["docs"].count_documents({})

    asyncio.run(work())


def test_time_is_limited_and_who_cancels_is_heard(server: Server, database: Database[Any]) -> None:
    async def late() -> None:
        async with superduper_client.aconnect(server.url, timeout=0.5) as client:
            docs = client[database.name]["docs"]
            began = time.monotonic()
            with pytest.raises(TimedOut):
                await docs.predict("slow", 3.0)
            assert time.monotonic() - began < 2.5
            task = asyncio.create_task(docs.predict("slow", 3.0))
            while server.backend.core.count == 0:
                await asyncio.sleep(0.01)
            task.cancel()

    asyncio.run(late())
    until(lambda: server.backend.core.count == 0, what="the cancelled request to be given up")
