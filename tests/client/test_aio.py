"""The client for asyncio, against a server that says what it was asked, and against a real one."""

import asyncio
import threading
import time
from collections.abc import Iterator
from inspect import signature
from typing import Any

import numpy as np
import pytest
from bson import Binary
from pymongo.database import Database

import superduper.collection
import superduper_client
from superduper.collection import Collection
from superduper.errors import InvalidInput, NotFound, NotReady, TimedOut, UserCodeError
from superduper.fields.codec import encode
from superduper.handles import Imputation
from superduper.predicting import Model, PredictionJob
from superduper_client.aio import AsyncClient, AsyncCollection, AsyncDatabase, AsyncHttpTransport
from superduper_client.aio_handles import AsyncImputation, AsyncModel, AsyncPredictionJob
from superduper_server.serve import Server, make_server
from tests.client.answering import (
    INSERT,
    PREDICT,
    STATUS,
    Answers,
    Reply,
    refusal,
    result,
    unused_port,
)
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
            assert await docs.find_one("one", fresh=True) == {"_id": "one", "n": -1}
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


def test_fresh_is_asked_for(answers: Answers) -> None:
    async def ask() -> None:
        async with superduper_client.aconnect(answers.url) as client:
            docs = client["main"]["docs"]
            assert await docs.find_one({"a": 1}, fresh=True) is None
            assert [row async for row in docs.find({"a": 1}, fresh=True)] == []
            assert await docs.find_one({"a": 1}) is None

    nothing = result({"documents": []})
    stream = Reply(200)
    answers.replies = [result({"database": "main"}), nothing, stream, nothing]
    asyncio.run(ask())
    assert [asked.document["fresh"] for asked in answers.asked[1:]] == [True, True, False]


@pytest.mark.parametrize(
    ("other", "ours"),
    [
        (Collection, AsyncCollection),
        (superduper.collection.Database, AsyncDatabase),
        (Model, AsyncModel),
        (Imputation, AsyncImputation),
        (PredictionJob, AsyncPredictionJob),
    ],
)
def test_nothing_is_missing(other: type[Any], ours: type[Any]) -> None:
    names = {name for name in dir(other) if not name.startswith("_")}
    assert names - set(dir(ours)) == set()
    for name in names:
        theirs, mine = getattr(other, name), getattr(ours, name)
        if callable(theirs):
            assert mine.__doc__, name
            assert [*signature(mine).parameters] == [*signature(theirs).parameters], name


def test_pymongos_own_arguments_are_refused_by_name(answers: Answers) -> None:
    async def ask() -> None:
        async with superduper_client.aconnect(answers.url) as client:
            docs = client["main"]["docs"]
            for asked in (
                docs.insert_one({"a": 1}, comment="c"),
                docs.find_one({"a": 1}, comment="c"),
                docs.count_documents({}, comment="c"),
                anext(docs.find({}, comment="c")),
                docs.delete_one({}, comment="c"),
            ):
                with pytest.raises(InvalidInput, match="comment: pymongo's, and not available"):
                    await asked

    answers.replies = [result({"database": "main"})]
    asyncio.run(ask())


def test_what_runs_beside(server: Server, database: Database[Any]) -> None:
    async def work() -> None:
        async with superduper_client.aconnect(server.url) as client:
            assert await client[database.name].list_collection_names() == []
            docs = client[database.name]["docs"]
            await docs.insert_many([{"_id": n, "n": n} for n in range(5)])
            assert (await docs.update_one({"_id": 1}, {"$set": {"n": 10}})).modified_count == 1
            assert (await docs.update_many({}, {"$inc": {"n": 1}})).matched_count == 5
            assert (await docs.replace_one({"_id": 4}, {"m": 1})).modified_count == 1
            assert (await docs.delete_one({"_id": 4})).deleted_count == 1
            assert (await docs.delete_many({"n": 11})).deleted_count == 1
            assert [row["name"] for row in await docs.list("model")] == ["double", "slow", "spell"]
            made = await docs.create_function("treble", lambda n: n * 3)
            assert made["version"] == 1
            await docs.delete("function", "treble")
            with pytest.raises(NotFound, match="treble"):
                await docs.show("function", "treble")
            model = docs.model("double")
            assert await model.predict(2) == 4
            assert (await model.explain(2))["value"] == 4
            rows = await model.predict_documents({"n": {"$gte": 3}}, key="n")
            assert [row["value"] for row in rows] == [6, 8]
            assert [each async for each in docs.model("spell").stream("abc")] == ["a", "b", "c"]
            job = await model.predict_later([1, 2])
            assert await job.status() == "queued" and job.id in str(await docs.jobs())
            await job.cancel()
            with pytest.raises(UserCodeError, match="cancelled"):
                [row async for row in job.rows()]
            watcher = await docs.create_watcher("doubled", "double", "n")
            assert (await watcher.show())["kind"] == "watcher"
            assert await watcher.pause() is watcher and await watcher.status() == "paused"
            assert (await docs.imputation("doubled")).name == "doubled"
            assert [row["document"] async for row in watcher.documents("pending", page=2)] == [
                0, 2, 3,
            ]  # fmt: skip
            await watcher.delete()
            with pytest.raises(NotFound, match="doubled"):
                await docs.imputation("doubled")

    asyncio.run(work())


def test_who_stops_waiting_leaves_no_thread_behind(server: Server, database: Database[Any]) -> None:
    async def work() -> None:
        async with superduper_client.aconnect(server.url) as client:
            docs = client[database.name]["docs"]
            await docs.insert_one({"n": 1})
            watcher = await docs.create_watcher("doubled", "double", "n")  # and nobody works
            waiting = [asyncio.create_task(watcher.wait(progress=False)) for _ in range(40)]
            assert await docs.count_documents({}) == 1
            assert await docs.model("double").predict(1) == 2, "others are not kept waiting"
            for task in waiting:
                task.cancel()
            ended = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(each) for each in ended} == {asyncio.CancelledError}
            slow = asyncio.create_task(docs.model("slow").predict(3.0))
            while server.backend.core.count == 0:
                await asyncio.sleep(0.01)
            slow.cancel()
            async for piece in docs.model("spell").stream("abcdef"):
                assert piece == "a"
                break

    asyncio.run(work())
    until(lambda: server.backend.core.count == 0, what="the cancelled request to be given up")
    until(lambda: not ours(), what="the client's threads to end")


def ours() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("superduper-client")]
