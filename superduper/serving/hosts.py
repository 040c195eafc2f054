"""The model hosts of one process: as many as are allowed, the least recently used closed first."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from superduper import settings
from superduper.errors import NotReady
from superduper.serving.batcher import Batcher
from superduper.serving.batches import Outcomes, Request
from superduper.serving.figures import Figures, ModelState
from superduper.serving.host import Launch, Message, ModelHost, Payload
from superduper.serving.model_hosts import Component, ModelHosts

T = TypeVar("T")


class Payloads(Protocol):
    """Where sealed models come from; `superduper.store.registry.Registry` is one."""

    def payload(self, component: Any) -> Payload: ...


MakeBatcher: TypeAlias = Callable[..., Batcher]
"""Called as `Batcher` is."""


@dataclass(frozen=True)
class _Entry:
    host: ModelHost
    batcher: Batcher

    def retire(self) -> None:
        """Answer what was accepted, then end."""
        self.batcher.close(finish=True)
        self.host.close(finish=True)

    def end(self) -> None:
        """End at once."""
        self.host.close()
        self.batcher.close()


class Hosts(ModelHosts):
    """The model hosts of this process, each with its batcher."""

    def __init__(self, registry: Payloads, launch: Launch, *, max_hosts: int = 8) -> None:
        self._registry = registry
        self._launch = launch
        self._max_hosts = max_hosts
        self._memory_mb = settings.get_number("MODELS_MEMORY_MB")
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._retiring: list[tuple[_Entry, threading.Thread]] = []
        self._lock = threading.Lock()
        self._closed = False
        self._make_batcher: MakeBatcher = Batcher

    def batch_with(self, make: MakeBatcher) -> None:
        """End the models that are loaded, and have those that are asked from now on batched so."""
        with self._lock:
            self._make_batcher = make
            entries = [*self._entries.values(), *(entry for entry, _ in self._retiring)]
            self._entries.clear()
        for entry in entries:
            entry.end()

    def put(self, component: Component, request: Request) -> None:
        """Have a request answered through its `done`; see `Batcher.put`. Never blocks for long."""
        with self._lock:
            self._entry(component).batcher.put(request)

    def states(self) -> list[ModelState]:
        """The models that are loaded, or about to be."""
        with self._lock:
            entries = list(self._entries.items())
        return [
            ModelState(id, entry.batcher.figures, entry.batcher.waiting, entry.host.memory_mb)
            for id, entry in entries
        ]

    def is_loaded(self, component_id: str) -> bool:
        """Whether a model's process is there and has it loaded."""
        with self._lock:
            entry = self._entries.get(component_id)
        return entry is not None and entry.host.is_loaded

    def predict_alone(
        self, component: Component, values: Sequence[Any], timeout: float
    ) -> Outcomes:
        """The outcomes of values that share no batch; see `predict`."""
        return self._on_host(component, lambda host: host.predict(values, timeout))

    def _on_host(self, component: Component, call: Callable[[ModelHost], T]) -> T:
        while True:
            with self._lock:
                host = self._entry(component).host
            try:
                return call(host)
            except NotReady:
                if not host.closed or self._closed:
                    raise

    def ask(self, component: Component, message: Message, timeout: float) -> Message:
        """A model process's answer to something else than a prediction; see `ModelHost.ask`."""
        return self._on_host(component, lambda host: host.ask(message, timeout))

    def unload(self, component_id: str) -> None:
        """Let a model go once what it was asked has been answered; nothing if it is not loaded."""
        with self._lock:
            entry = self._entries.pop(component_id, None)
            if entry is not None:
                self._retire(entry)

    def close(self) -> None:
        """End all hosts; requests that wait get NotReady."""
        with self._lock:
            self._closed = True
            entries = [*self._entries.values(), *(entry for entry, _ in self._retiring)]
            self._entries.clear()
        for entry in entries:
            entry.end()
        for _, thread in self._retiring:
            thread.join()

    def _entry(self, component: Component) -> _Entry:
        if self._closed:
            raise NotReady("the model hosts have been closed")
        entry = self._entries.get(component.id)
        if entry is None:
            figures = Figures()
            host = ModelHost(
                lambda: self._registry.payload(component),
                component.id,
                self._launch,
                figures=figures,
            )
            batcher = self._make_batcher(host, component.id, figures=figures, **batching(component))
            entry = self._entries[component.id] = _Entry(host, batcher)
            while len(self._entries) > 1 and self._is_crowded():
                self._retire(self._entries.popitem(last=False)[1])
        self._entries.move_to_end(component.id)
        return entry

    def _is_crowded(self) -> bool:
        used = sum(entry.host.memory_mb for entry in self._entries.values())
        return len(self._entries) > self._max_hosts or used > self._memory_mb

    def _retire(self, entry: _Entry) -> None:
        thread = threading.Thread(target=entry.retire, name="retire model host", daemon=True)
        self._retiring = [pair for pair in self._retiring if pair[1].is_alive()]
        self._retiring.append((entry, thread))
        thread.start()


def batching(component: Component) -> dict[str, Any]:
    """How a model wants its requests grouped: what it said when it was registered."""
    return dict((component.details or {}).get("batching") or {})
