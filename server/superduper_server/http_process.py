"""One of several HTTP processes of a server: it answers, and the hub has what all of them share.

It is started by the hub, which tells it on its standard input what to serve, and which of its files
are its ends of the pairs of sockets: the link, for messages, and the door, through which accepted
connections come.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from superduper.errors import SuperduperError
from superduper.jobs.channel import Message
from superduper.jobs.kernel import conceal
from superduper.service import Service
from superduper.store.logs import log_to_stderr
from superduper.store.mongo import connect_mongo
from superduper_server.group import Hear
from superduper_server.limits import Limits
from superduper_server.link import Link
from superduper_server.merged_figures import metrics_of, snapshot
from superduper_server.serve import Server
from superduper_server.shared_hosts import SharedHosts
from superduper_server.shared_ledger import SharedLedger

FIGURES_SECONDS = 5.0
HANDED_AT_ONCE = 16
PING = "ping"
TAKEN = "taken"
"""In the ledger: the connections that a process has ever taken at its door."""


class Together:
    """The group of a process that is one of several."""

    def __init__(
        self,
        link: socket.socket,
        door: socket.socket,
        hosts: SharedHosts,
        ledger: SharedLedger,
    ) -> None:
        self.ledger = ledger
        self.is_lost = False
        self._pair = link
        self._door = door
        self._hosts = hosts
        self._link: Link | None = None
        self._take: Callable[[socket.socket], None] | None = None
        self._uncounted = 0

    async def begin(self, registry: CollectorRegistry, hear: Hear) -> None:
        """Be reached by the hub."""

        async def answer(name: str, fields: Message) -> Any:
            if name == "figures":
                return snapshot(registry)
            if name == PING:
                return {}
            hear(fields)
            return {}

        self._link = await Link.over(self._pair, answer, self._hosts.hear, self._lose)
        self._hosts.attach(self._link)

    def _lose(self) -> None:
        self.is_lost = True
        self._hosts.detach()

    async def open(self, take: Callable[[socket.socket], None]) -> None:
        """Take what is handed in at the door, and tell the hub so."""
        assert self._link is not None
        self._take = take
        self._door.setblocking(False)
        asyncio.get_running_loop().add_reader(self._door, self._look)
        await self._link.call("ready")

    async def shut(self) -> None:
        """Take what the hub has handed in by now, and no more."""
        asyncio.get_running_loop().remove_reader(self._door)
        while self._look():
            pass
        self._door.close()

    def _look(self) -> bool:
        """Take connections that are there; False if there were none."""
        assert self._take is not None
        try:
            signs, files, _, _ = socket.recv_fds(self._door, HANDED_AT_ONCE, HANDED_AT_ONCE)
        except BlockingIOError:
            return False
        except OSError:
            signs, files = b"", []
        if not signs:  # the hub is gone, as the link tells too
            asyncio.get_running_loop().remove_reader(self._door)
            return False
        self._uncounted += len(files)
        with suppress(SuperduperError), self.ledger:  # else they are counted with the next
            self.ledger.hold(TAKEN, self._uncounted)
            self._uncounted = 0
        for file in files:
            connection = socket.socket(fileno=file)
            connection.setblocking(False)
            self._take(connection)
        return True

    async def end(self) -> None:
        """Part with the hub."""
        if self._link is not None:
            self._link.close()

    def tell(self, **news: Any) -> None:
        """Tell the others through the hub; returns when they know."""
        self._hosts.call("tell", news=news)

    async def figures(self, registry: CollectorRegistry) -> Sequence[Metric]:
        """The figures of all, which the hub collects."""
        assert self._link is not None
        return metrics_of(await self._link.call("figures", FIGURES_SECONDS))


def serve(told: Mapping[str, Any]) -> None:
    """Be the HTTP process that the hub wants."""
    count = told["processes"]
    for name in ("link", "door", "ledger"):
        os.set_inheritable(told[name], False)  # what is tried out here must not have them
    ledger = SharedLedger(told["ledger"], told["index"], count)
    link, door = (socket.socket(fileno=told[name]) for name in ("link", "door"))
    hosts = SharedHosts()
    with connect_mongo(told["address"]) as client:
        server = Server(
            Service(client[told["database"]], hosts),
            None,
            insecure=told["insecure"],
            register_code=told["register_code"],
            tls=tuple(told["tls"]) if told["tls"] else None,
            limits=Limits.from_settings().for_one_of(count),
            group=Together(link, door, hosts, ledger),
        )
        for model in told["unloaded"]:
            server.backend.models.mark(model, loaded=False)
        server.run()


def main() -> None:
    """The program."""
    log_to_stderr()
    conceal()
    with suppress(KeyboardInterrupt):
        serve(json.load(sys.stdin))


if __name__ == "__main__":
    main()
