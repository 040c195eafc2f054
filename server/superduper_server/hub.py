"""The first process of a server that has several: it has the models, and starts the others.

It accepts connections and hands each to the HTTP process that has the fewest, relays what one of
them tells the others, adds up figures, starts again what has died, and ends all gracefully.
"""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry, ProcessCollector
from pymongo.database import Database

from superduper import settings
from superduper.errors import SuperduperError, TimedOut
from superduper.imputations.hosting import open_hosts
from superduper.jobs.channel import Message
from superduper.serving.hosts import Hosts
from superduper.store.artifacts import ArtifactStore
from superduper.store.forms import Forms
from superduper.store.registry import Registry
from superduper.store.signing import Keyring
from superduper_server.connections import ALL
from superduper_server.http_process import PING, TAKEN
from superduper_server.loop_batcher import LoopBatcher
from superduper_server.member import Member
from superduper_server.merged_figures import growing, merged, snapshot
from superduper_server.model_figures import ModelFigures
from superduper_server.pool import Pool
from superduper_server.serve import BACKLOG, check, listen, may_register, settle, url_of
from superduper_server.shared_ledger import SharedLedger, make_file

logger = logging.getLogger(__name__)

THREADS = 64
WAITING = 4096
ACCEPTED_AT_ONCE = 64
BREATH_SECONDS = 0.05
NEWS_SECONDS = 5.0
FIGURES_SECONDS = 2.0
PING_SECONDS = 3.0
MISSED_PINGS = 2
PAUSES = (0.0, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Before an HTTP process is started again, by how many before it died young."""
YOUNG_SECONDS = 10.0
END_SECONDS = 10.0
"""What an HTTP process gets to end beyond what it gives to requests."""


class Hub:
    """Serves on one socket with several processes."""

    def __init__(
        self, hosts: Hosts, bound: socket.socket, told: Mapping[str, Any], processes: int
    ) -> None:
        """`told` is what an HTTP process is told: address, database and how to listen."""
        self.when_ready: Callable[[], None] | None = None
        self._hosts = hosts
        self._bound = bound
        self._told = {**told, "processes": processes}
        self._file = make_file(processes)
        self._ledger = SharedLedger(self._file, 0, processes)
        self._pool = Pool("calls", threads=THREADS, waiting=WAITING)
        self._members: dict[int, Member] = {}
        self._unloaded: set[str] = set()
        self._gone: list[Message] = []
        self._registry = CollectorRegistry()
        self._registry.register(ModelFigures(hosts))
        ProcessCollector(registry=self._registry)
        self._is_accepting = False

    @property
    def url(self) -> str:
        """Where it is reached."""
        return url_of(self._bound, "https" if self._told["tls"] else "http")

    def run(self) -> None:
        """Serve until told to stop.

        Raises SuperduperError if an HTTP process cannot be started.
        """
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        self._hosts.batch_with(partial(LoopBatcher, loop, threading.get_ident()))
        kept = [loop.create_task(self._keep(index)) for index in range(self._told["processes"])]
        stopping = loop.create_task(self._stopping.wait())
        try:
            beginning = loop.create_task(self._begin())
            done, _ = await asyncio.wait(
                (*kept, beginning, stopping), return_when=asyncio.FIRST_COMPLETED
            )
            if beginning in done:
                beginning.result()
                await asyncio.wait((*kept, stopping), return_when=asyncio.FIRST_COMPLETED)
            beginning.cancel()
        finally:
            await self._end(kept)
        for task in kept:
            task.result()

    async def _begin(self) -> None:
        """Accept, once all processes are ready."""
        while sum(each.is_ready for each in self._members.values()) < self._told["processes"]:
            await self._changed.wait()
            self._changed.clear()
        self._bound.setblocking(False)
        self._bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._bound.listen(BACKLOG)
        self._accept_again()
        settle()
        if self.when_ready is not None:
            self.when_ready()

    def _stop(self, number: signal.Signals) -> None:
        logger.info("ended by %s", signal.Signals(number).name, extra={"event": "server.ended"})
        self._stopping.set()

    # The HTTP processes ----------------------------------------------------------------------

    async def _keep(self, index: int) -> None:
        """Have one HTTP process, and another when it has died.

        Raises SuperduperError if the first one is never ready.
        """
        loop, deaths, has_been_ready = asyncio.get_running_loop(), 0, False
        while not self._stopping.is_set():
            member = self._members[index] = Member(index, self._hosts, self._pool, self._asked)
            began = loop.time()
            await member.start({**self._told, "unloaded": sorted(self._unloaded)}, self._file)
            if self._stopping.is_set():
                member.send_signal(signal.SIGTERM)
            watching = loop.create_task(self._end_if_stuck(member))
            code = await member.ended()
            watching.cancel()
            has_been_ready |= member.was_ready
            self._gone, member.figures = merged([self._gone, growing(member.figures)]), []
            self._ledger.empty(index)
            if self._stopping.is_set():
                return
            if not has_been_ready:
                raise SuperduperError(
                    f"an HTTP process ended with {code} before it could answer; the log says why"
                )
            logger.warning(
                "HTTP process %d ended with %d and is started again",
                index,
                code,
                extra={"event": "server.process_died"},
            )
            deaths = deaths + 1 if loop.time() - began < YOUNG_SECONDS else 0
            with suppress(TimeoutError):
                pause = PAUSES[min(deaths, len(PAUSES) - 1)]
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _end_if_stuck(self, member: Member) -> None:
        """Kill an HTTP process that was stopped: it keeps its connections, and maybe a lock."""
        missed = 0
        while missed < MISSED_PINGS:
            await asyncio.sleep(PING_SECONDS)
            if not member.is_ready or self._stopping.is_set():
                continue
            try:
                await member.call(PING, PING_SECONDS)
                missed = 0
            except TimedOut:
                missed += 1
            except SuperduperError:
                return  # it has ended
        logger.error(
            "HTTP process %d does not answer and is ended",
            member.index,
            extra={"event": "server.process_stuck"},
        )
        member.send_signal(signal.SIGKILL)

    async def _end(self, kept: "list[asyncio.Task[None]]") -> None:
        """Let the HTTP processes finish what was begun, then end the models."""
        self._stopping.set()
        self._pause()
        self._bound.close()
        for member in self._members.values():
            member.send_signal(signal.SIGTERM)
        seconds = settings.get_number("DRAIN_SECONDS") + END_SECONDS
        _, late = await asyncio.wait(kept, timeout=seconds)
        if late:
            for member in self._members.values():
                member.send_signal(signal.SIGKILL)
            await asyncio.wait(late)
        await asyncio.to_thread(self._hosts.close)
        self._pool.close()

    # Connections -----------------------------------------------------------------------------

    def _accept_again(self) -> None:
        if not self._is_accepting and not self._stopping.is_set():
            self._is_accepting = True
            asyncio.get_running_loop().add_reader(self._bound, self._accept)

    def _pause(self, seconds: float | None = None) -> None:
        """Accept no more, or for a time: who connects meanwhile waits."""
        loop = asyncio.get_running_loop()
        if self._is_accepting:
            self._is_accepting = False
            loop.remove_reader(self._bound)
        if seconds is not None:
            loop.call_later(seconds, self._accept_again)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            members = sorted(
                (each for each in self._members.values() if each.is_ready), key=self._load
            )
            if not members:
                self._pause(BREATH_SECONDS)
                return
            try:
                connection, _ = self._bound.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError:  # no more files: some will be closed
                self._pause(BREATH_SECONDS)
                return
            with connection:
                if not any(member.hand(connection) for member in members):
                    self._pause(BREATH_SECONDS)

    def _load(self, member: Member) -> int:
        """How many connections a process has, or is about to take."""
        taken = self._ledger.held_by(TAKEN, member.index)
        return self._ledger.held_by(ALL, member.index) + member.handed - taken

    # What they ask ---------------------------------------------------------------------------

    async def _asked(self, member: Member, name: str, fields: Message) -> Any:
        if name == "ready":
            member.is_ready = member.was_ready = True
            self._changed.set()
            return {}
        if name == "tell":
            await self._tell(member, fields["news"])
            return {}
        if name == "figures":
            return await self._figures()
        raise SuperduperError(f"an HTTP process asks for {name!r}")

    async def _tell(self, teller: Member, news: Message) -> None:
        """Tell all others, and wait until they know."""
        if "model" in news:
            change = self._unloaded.discard if news["loaded"] else self._unloaded.add
            change(news["model"])
        others = [each for each in self._members.values() if each.is_ready and each is not teller]
        calls = (each.call("news", NEWS_SECONDS, **news) for each in others)
        for found in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(found, Exception):  # it has ended, or asks the database again soon
                logger.warning("not told: %s", found, extra={"event": "server.not_told"})

    async def _figures(self) -> list[Message]:
        """The figures of all processes and of the models, added up."""

        async def ask(member: Member) -> None:
            with suppress(SuperduperError):  # then what it told last still holds
                member.figures = await member.call("figures", FIGURES_SECONDS)

        members = [each for each in self._members.values() if each.is_ready]
        own = await self._pool.run(lambda: snapshot(self._registry), seconds=FIGURES_SECONDS)
        await asyncio.gather(*map(ask, members))
        return merged([own, self._gone, *(each.figures for each in self._members.values())])


def make_hub(
    database: Database[Any],
    address: str,
    processes: int,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    insecure: bool = False,
    insecure_bind: bool = False,
    register_code: bool | None = None,
    tls: tuple[str, str] | None = None,
) -> Hub:
    """As `serve.make_server`, but for several HTTP processes; `address` is the database's."""
    check(host, insecure=insecure, insecure_bind=insecure_bind, tls=tls)
    told = {
        "address": address,
        "database": database.name,
        "insecure": insecure,
        "register_code": may_register(host, register_code),
        "tls": tls,
    }
    registry = Registry(database, ArtifactStore(database, Keyring.open()))
    return Hub(open_hosts(registry, Forms(database).of), listen(host, port), told, processes)
