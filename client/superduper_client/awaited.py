"""The synchronous client's methods, awaited: nothing that it can do is written twice.

A method runs in a thread of the client's; what it sends goes through the transport of asyncio, so
that the connections are the same ones, and cancelling the task cancels the request.
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import CancelledError, Executor, Future
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar

from superduper.command import Command
from superduper.commands import FindDocuments, StreamPrediction

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F")
F_co = TypeVar("F_co", covariant=True)
A = TypeVar("A", bound="Awaited[Any]")
Stream = AsyncGenerator[dict[str, Any], None]
END: Final = object()


class AsyncTransport(Protocol):
    """Sends commands, awaited."""

    async def send(self, command: Command) -> Any: ...

    def stream(self, command: FindDocuments | StreamPrediction) -> Stream: ...


class Bridge:
    """A transport for one thread: what it is given is sent by the event loop."""

    def __init__(self, transport: AsyncTransport, threads: Executor) -> None:
        self._transport = transport
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._waiting: Future[Any] | None = None
        self._is_cancelled = False

    def send(self, command: Command) -> Any:
        """The answer to a command."""
        return self._wait(self._transport.send(command))

    def stream(
        self, command: FindDocuments | StreamPrediction
    ) -> Generator[dict[str, Any], None, None]:
        """The documents that match, or the pieces of a prediction, as they come."""
        rows = self._transport.stream(command)
        try:
            while (row := self._wait(_next(rows))) is not None:
                yield row
        finally:
            asyncio.run_coroutine_threadsafe(rows.aclose(), self._loop).result()

    def close(self) -> None:
        """Nothing: the connections are the client's."""

    async def run(self, work: Callable[[], R]) -> R:
        """What some work gives that sends through this, in a thread."""
        try:
            return await self._loop.run_in_executor(self._threads, work)
        except asyncio.CancelledError:
            self._cancel()
            raise

    def _cancel(self) -> None:
        """Have the thread end when it sends something, or now if it waits for an answer."""
        self._is_cancelled = True
        if self._waiting is not None:
            self._waiting.cancel()

    def _wait(self, work: Coroutine[Any, Any, R]) -> R:
        if self._is_cancelled:
            work.close()
            raise CancelledError
        self._waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        if self._is_cancelled:  # just now, and what was waited for was something else
            self._waiting.cancel()
        found: R = self._waiting.result()
        return found


async def _next(rows: Stream) -> dict[str, Any] | None:
    return await anext(rows, None)


class Awaited(Generic[F_co]):
    """What has the methods of a synchronous facade, awaited."""

    async def bridge(self) -> Bridge:
        """What one call sends with."""
        raise NotImplementedError

    def _facade(self, bridge: Bridge) -> F_co:
        """The facade that one call runs on."""
        raise NotImplementedError

    async def _beside(self, work: Callable[[F_co], R]) -> R:
        bridge = await self.bridge()
        return await bridge.run(lambda: work(self._facade(bridge)))


def awaited(
    method: Callable[Concatenate[F, P], R],
) -> Callable[Concatenate[Awaited[F], P], Coroutine[Any, Any, R]]:
    """A method of the facade, awaited."""

    @functools.wraps(method)
    async def call(self: Awaited[F], /, *given: P.args, **named: P.kwargs) -> R:
        return await self._beside(lambda facade: method(facade, *given, **named))

    return call


def chained(
    method: Callable[Concatenate[Any, P], Any],
) -> Callable[Concatenate[A, P], Coroutine[Any, Any, A]]:
    """A method of the facade that answers the facade itself, awaited."""

    @functools.wraps(method)
    async def call(self: A, /, *given: P.args, **named: P.kwargs) -> A:
        await self._beside(lambda facade: method(facade, *given, **named))
        return self

    return call


def in_turn(
    method: Callable[Concatenate[F, P], Iterator[R]],
) -> Callable[Concatenate[Awaited[F], P], AsyncGenerator[R, None]]:
    """A method of the facade that yields, for `async for`."""

    @functools.wraps(method)
    async def call(
        self: Awaited[F], /, *given: P.args, **named: P.kwargs
    ) -> AsyncGenerator[R, None]:
        bridge = await self.bridge()
        found: Any = method(self._facade(bridge), *given, **named)
        row: Any
        try:
            while (row := await bridge.run(lambda: next(found, END))) is not END:
                yield row
        except GeneratorExit:
            await bridge.run(found.close)
            raise

    return call
