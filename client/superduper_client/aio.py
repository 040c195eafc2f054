"""The same server from asyncio: all that the other client can do, awaited.

    async with superduper_client.aconnect(url, token=...) as client:
        docs = client["main"]["documents"]
        await docs.insert_one({"x": [1.0, 2.0]})
        labels = await asyncio.gather(*(docs.predict("digits", each) for each in images))

What is asked thousands of times a second is written for asyncio; the rest is the other client's,
run beside it (`superduper_client.awaited`).
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self

import httpx2
from pymongo.results import InsertManyResult, InsertOneResult

from superduper import commands, settings
from superduper.collection import Collection
from superduper.command import Command, build
from superduper.cursor import Sort, filter_of, sort_keys
from superduper.documents import INSERT_CHUNK, refuse, with_id
from superduper.errors import SuperduperError, TimedOut
from superduper.fields.codec import decode, decode_document, encode
from superduper.predicting import inputs_of, outputs_of
from superduper_client import wire
from superduper_client.aio_handles import AsyncImputation, AsyncModel
from superduper_client.awaited import Awaited, Bridge, awaited
from superduper_client.client import check_served
from superduper_client.speaking import (
    LONG_SECONDS,
    Deadline,
    Passing,
    Pauses,
    Speaker,
)
from superduper_client.wire import Call

MOST_THREADS = 1_000


class AsyncHttpTransport(Speaker[httpx2.AsyncClient]):
    """Commands answered by a server, awaited; see `HttpTransport` for times and repetitions.

    As many connections as there are requests at once are kept, up to a hundred. A request whose
    task is cancelled is cancelled on the server as well.
    """

    _connect = httpx2.AsyncClient

    async def send(self, command: Command) -> Any:
        """The answer to a command.

        Raises the error that the server answered; NotReady if none answers, TimedOut if it takes
        too long.
        """
        deadline = Deadline(self.seconds_for(command))
        if not isinstance(command, commands.InsertDocuments):
            return await self._answer(wire.call_of(command), deadline)
        ids: list[Any] = []
        for call in wire.insert_calls_of(command):
            ids += (await self._answer(call, deadline))["inserted_ids"]
        return {"inserted_ids": ids}

    async def stream(
        self, command: commands.FindDocuments | commands.StreamPrediction
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The documents that match, or the pieces of a prediction, as they come."""
        call = wire.stream_call_of(command)
        deadline = Deadline(self.timeout or LONG_SECONDS)
        pauses = Pauses(deadline)
        while True:
            began = False
            try:
                async with self._begun(call, deadline) as response:
                    if not self.is_stream(response):
                        self.read(call, response, await response.aread())
                        raise SuperduperError(f"{self.url} answered as no Superduper server does")
                    rows = wire.Rows()
                    async for chunk in response.aiter_bytes():
                        for row in rows.of(chunk):
                            began = True
                            yield row
                    rows.check_end()
                    return
            except Passing as passing:
                if began:  # too late to begin again: documents have been handed out
                    raise passing.error from passing.__cause__
                wait = pauses.after(passing, self.patience())
            await asyncio.sleep(wait)

    async def _answer(self, call: Call, deadline: Deadline) -> Any:
        pauses = Pauses(deadline)
        while True:
            try:
                async with asyncio.timeout(deadline.left(self.url)):
                    async with self._begun(call, deadline) as response:
                        return self.read(call, response, await response.aread())
            except Passing as passing:
                wait = pauses.after(passing, self.patience())
            except TimedOut:
                raise
            except TimeoutError as error:
                raise deadline.passed(self.url) from error
            await asyncio.sleep(wait)

    @asynccontextmanager
    async def _begun(self, call: Call, deadline: Deadline) -> AsyncGenerator[httpx2.Response, None]:
        with self.named_errors(call):
            request = self._http.build_request(**self.asked(call, deadline))
            response = await self._http.send(request, stream=True)
            self.was_reached = True
            try:
                yield response
            finally:
                await response.aclose()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


class AsyncCollection(Awaited[Collection]):
    """Documents, components and imputations of one collection, awaited."""

    def __init__(self, client: "AsyncClient", database: str, name: str) -> None:
        self._client = client
        self._database = database
        self.name = name

    async def _send(self, command: type[commands.OnCollection], **fields: Any) -> Any:
        built = build(command, collection=self.name, **fields)
        return await (await self._client.transport_of(self._database)).send(built)

    async def bridge(self) -> Bridge:
        """What a method sends with that runs in a thread of the client's."""
        return Bridge(await self._client.transport_of(self._database), self._client.threads)

    def _facade(self, bridge: Bridge) -> Collection:
        return Collection(bridge, self.name)

    async def _rows(
        self, command: commands.FindDocuments | commands.StreamPrediction
    ) -> AsyncGenerator[dict[str, Any], None]:
        transport = await self._client.transport_of(self._database)
        async with aclosing(transport.stream(command)) as rows:
            async for row in rows:
                yield row

    async def insert_one(self, document: dict[str, Any], **options: Any) -> InsertOneResult:
        """Insert a document; tensors, arrays and images go in as they are."""
        inserted = await self.insert_many([document], **options)
        return InsertOneResult(inserted.inserted_ids[0], True)

    async def insert_many(
        self, documents: Iterable[dict[str, Any]], ordered: bool = True, **options: Any
    ) -> InsertManyResult:
        """Insert documents; each gets an `_id` if it has none."""
        refuse(options)
        ids: list[Any] = []
        encoded = [with_id(document) for document in documents]
        for start in range(0, max(1, len(encoded)), INSERT_CHUNK):
            part = encoded[start : start + INSERT_CHUNK]
            sent = await self._send(commands.InsertDocuments, documents=part, ordered=ordered)
            ids += sent["inserted_ids"]
        return InsertManyResult(ids, True)

    async def find(
        self,
        filter: Mapping[str, Any] | None = None,
        projection: Any = None,
        skip: int = 0,
        limit: int = 0,
        sort: Sort | None = None,
        fresh: bool = False,
        **options: Any,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The documents that match, as they come: `async for document in docs.find(...)`.

        With `fresh` without stale values of ours. A document that matches, or has its place in the
        order, by a stale value is left out then.
        """
        refuse(options)
        query = _query(filter, projection, skip, sort, fresh)
        command = build(commands.FindDocuments, collection=self.name, limit=limit, **query)
        async with aclosing(self._rows(command)) as rows:
            async for row in rows:
                yield decode_document(row)

    async def find_one(
        self,
        filter: Any = None,
        projection: Any = None,
        skip: int = 0,
        sort: Sort | None = None,
        fresh: bool = False,
        **options: Any,
    ) -> dict[str, Any] | None:
        """One document that matches (a bare value is an `_id`), or None; `fresh` as for `find`."""
        refuse(options)
        query = _query(filter, projection, skip, sort, fresh)
        found = (await self._send(commands.FindDocuments, limit=1, **query))["documents"]
        return decode_document(found[0]) if found else None

    async def count_documents(self, filter: Mapping[str, Any], **options: Any) -> int:
        """The number of documents that match."""
        refuse(options)
        sent = await self._send(commands.CountDocuments, filter=encode(filter_of(filter)))
        return int(sent["count"])

    async def predict(self, model: str, value: Any, version: int | None = None) -> Any:
        """A model's output for a value, or for each of a list of values."""
        inputs = inputs_of(value)
        told = await self._send(commands.Predict, name=model, inputs=inputs, version=version)
        return outputs_of(told, value)

    async def predict_imputation(self, name: str, value: Any) -> Any:
        """The output of an imputation's live version for a value, or for each of a list."""
        told = await self._send(commands.PredictImputation, name=name, inputs=inputs_of(value))
        return outputs_of(told, value)

    async def stream(
        self, model: str, value: Any, version: int | None = None
    ) -> AsyncGenerator[Any, None]:
        """One prediction piece by piece: `async for piece in docs.stream("teller", "Once")`."""
        asked = {"kind": "model", "name": model, "input": encode(value), "version": version}
        command = build(commands.StreamPrediction, collection=self.name, **asked)
        async with aclosing(self._rows(command)) as rows:
            async for row in rows:
                if "end" in wire.checked_piece(row):
                    return
                yield decode(row["piece"])
        raise wire.ended_early()

    update_one = awaited(Collection.update_one)
    update_many = awaited(Collection.update_many)
    replace_one = awaited(Collection.replace_one)
    delete_one = awaited(Collection.delete_one)
    delete_many = awaited(Collection.delete_many)
    explain = awaited(Collection.explain)

    create_function = awaited(Collection.create_function)
    create_model = awaited(Collection.create_model)
    create_loss = awaited(Collection.create_loss)
    create_metric = awaited(Collection.create_metric)
    create_trainer = awaited(Collection.create_trainer)
    create_optimizer = awaited(Collection.create_optimizer)
    create_policy = awaited(Collection.create_policy)
    create_encoder = awaited(Collection.create_encoder)
    list = awaited(Collection.list)
    show = awaited(Collection.show)
    delete = awaited(Collection.delete)

    async def create_imputation(self, name: str | None = None, **settings: Any) -> AsyncImputation:
        """Declare that one field is predicted from another, and start its fit.

        The settings are those of `Collection.create_imputation`.
        """
        made = await self._beside(lambda docs: docs.create_imputation(name, **settings))
        return AsyncImputation(self, made.name)

    async def create_watcher(
        self,
        name: str,
        model: str,
        key: str | Sequence[str],
        target: str | None = None,
        filter: Mapping[str, Any] | None = None,
        features: Mapping[str, str] | None = None,
    ) -> AsyncImputation:
        """Write a model's output for every document that has `key`, now and from now on.

        It goes to `target`, else to `_outputs.<key>.<model>`; `features` as in the other client.
        """
        made = await self._beside(
            lambda docs: docs.create_watcher(name, model, key, target, filter, features)
        )
        return AsyncImputation(self, made.name)

    async def imputation(self, name: str) -> AsyncImputation:
        """A handle on an imputation that exists.

        Raises NotFound if it does not.
        """
        await self._beside(lambda docs: docs.imputation(name))
        return AsyncImputation(self, name)

    def model(self, name: str) -> AsyncModel:
        """A handle on a model: predictions of documents, in pieces, later, explained."""
        return AsyncModel(self, name)

    jobs = awaited(Collection.jobs)
    runs = awaited(Collection.runs)
    run = awaited(Collection.run)
    highscores = awaited(Collection.highscores)

    def __repr__(self) -> str:
        return f"<AsyncCollection {self.name!r}>"


def _query(
    filter: Any, projection: Any, skip: int, sort: Sort | None, fresh: bool
) -> dict[str, Any]:
    shown = projection
    if projection is not None and not isinstance(projection, Mapping):
        shown = list(projection)
    keys: Sequence[tuple[str, int]] | None = sort_keys(sort) if sort else None
    query = {"filter": encode(filter_of(filter)), "projection": shown, "skip": skip, "sort": keys}
    return {**query, "fresh": fresh}


class AsyncDatabase:
    """Collections by name."""

    def __init__(self, client: "AsyncClient", name: str) -> None:
        self._client = client
        self.name = name

    def __getitem__(self, collection: str) -> AsyncCollection:
        name = build(commands.CountDocuments, collection=collection).collection
        return AsyncCollection(self._client, self.name, name)

    async def list_collection_names(self) -> list[str]:
        """The names of the collections there are."""
        transport = await self._client.transport_of(self.name)
        return [row["name"] for row in await transport.send(build(commands.ListCollections))]

    def __repr__(self) -> str:
        return f"<AsyncDatabase {self.name!r}>"


class AsyncClient:
    """The database that a server serves, for asyncio: `client["shop"]["documents"]`."""

    def __init__(self, url: str, token: str | None = None, timeout: float | None = None) -> None:
        self._transport = AsyncHttpTransport(url, token, timeout)
        self._served: str | None = None
        # As many as are needed at once: some wait for hours, and none may keep the others from it.
        self.threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="superduper-client")

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._transport.url

    def __getitem__(self, database: str) -> AsyncDatabase:
        return AsyncDatabase(self, database)

    async def transport_of(self, database: str) -> AsyncHttpTransport:
        """The way to a database, once the server is known to serve it.

        Raises NotFound, with the name of the database that it serves, if it is another.
        """
        if self._served is None:
            served = await self._transport.send(build(commands.ShowStatus))
            self._served = str(served["database"])
        check_served(self.url, self._served, database)
        return self._transport

    async def close(self) -> None:
        """Close the connections to the server."""
        await self._transport.close()
        self.threads.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient {self.url}>"


def aconnect(
    url: str | None = None, token: str | None = None, timeout: float | None = None
) -> AsyncClient:
    """Connect from asyncio: `$SUPERDUPER_URI` and `$SUPERDUPER_TOKEN` unless they are given.

    Nothing is sent yet. Raises InvalidInput if it is no http:// or https:// address.
    """
    token = token or settings.get("TOKEN") or None
    return AsyncClient(url or settings.get("URI"), token, timeout)
