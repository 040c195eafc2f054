"""What a process of a server shares with the others, and what it does if there are none."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from superduper.errors import InvalidInput
from superduper.service import Service
from superduper.serving.batcher import Batcher
from superduper.serving.hosts import Hosts
from superduper_server.ledger import Ledger, OwnLedger
from superduper_server.loop_batcher import LoopBatcher
from superduper_server.model_figures import ModelFigures

Hear = Callable[[Mapping[str, Any]], None]


class Group(Protocol):
    """The processes of one server, as one of them sees them."""

    @property
    def ledger(self) -> Ledger:
        """What is counted against the server's limits."""

    @property
    def is_lost(self) -> bool:
        """Whether the others are gone, so that this one must end."""

    async def begin(self, registry: CollectorRegistry, hear: Hear) -> None:
        """The loop runs: `registry` has this process's figures, `hear` is given others' news."""

    async def open(self, take: Callable[[Any], None]) -> None:
        """This process can answer: connections that others accept for it are given to `take`."""

    async def shut(self) -> None:
        """It takes no more of them."""

    async def end(self) -> None:
        """The loop is about to end."""

    def tell(self, **news: Any) -> None:
        """Tell the others; returns when they know. Blocks: not in the loop's thread.

        `changed`: another version may be live; `revoked`: a token's id; `model` and `loaded`: a
        model of the Open Inference Protocol was loaded or unloaded by name.
        """

    async def figures(self, registry: CollectorRegistry) -> Sequence[Metric]:
        """The figures of all processes and of the models."""


class Alone:
    """A process that serves alone, with model hosts of its own."""

    is_lost = False

    def __init__(self, hosts: Hosts) -> None:
        self.ledger: Ledger = OwnLedger()
        self._hosts = hosts

    @classmethod
    def of(cls, service: Service) -> "Alone":
        """For a service. Raises InvalidInput if its models are elsewhere."""
        hosts = service.context.hosts
        if not isinstance(hosts, Hosts):
            raise InvalidInput("a server that is alone needs model hosts of its own")
        return cls(hosts)

    async def begin(self, registry: CollectorRegistry, hear: Hear) -> None:
        """Have the loop run the batches."""
        loop = asyncio.get_running_loop()
        self._hosts.batch_with(partial(LoopBatcher, loop, threading.get_ident()))

    async def open(self, take: Callable[[Any], None]) -> None:
        """It accepts by itself."""

    async def shut(self) -> None:
        """It accepts by itself."""

    async def end(self) -> None:
        """Have threads run the batches again."""
        await asyncio.to_thread(self._hosts.batch_with, Batcher)

    def tell(self, **news: Any) -> None:
        """There is nobody to be told."""

    async def figures(self, registry: CollectorRegistry) -> Sequence[Metric]:
        """Those of this process."""
        return [*registry.collect(), *ModelFigures(self._hosts).collect()]
