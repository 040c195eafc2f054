"""The model hosts of one process: as many as are allowed, the least recently used closed first."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from superduper import settings
from superduper.errors import NotReady, SuperduperError
from superduper.serving import loading
from superduper.serving.batcher import Batcher
from superduper.serving.batches import Outcomes, Request
from superduper.serving.figures import Figures, ModelState
from superduper.serving.host import Message, ModelHost, Wishes
from superduper.serving.loading import Launch, Payload
from superduper.serving.model_hosts import Component, ModelHosts

logger = logging.getLogger(__name__)

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

    def __init__(
        self,
        registry: Payloads,
        launch: Launch,
        wishes: Callable[[Any], Wishes] | None = None,
        *,
        max_hosts: int = 8,
    ) -> None:
        """`wishes` gives those for a component; without it models have their plain form."""
        self._registry = registry
        self._wishes = wishes
        self._followed: dict[str, int | None] = {}
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
            ModelState(
                id,
                entry.batcher.figures,
                entry.batcher.waiting,
                entry.host.memory_mb,
                entry.host.details.get("form"),
                entry.host.trouble,
            )
            for id, entry in entries
        ]

    def is_loaded(self, component_id: str) -> bool:
        """Whether a model's process is there and has it loaded."""
        with self._lock:
            entry = self._entries.get(component_id)
        return entry is not None and entry.host.is_loaded

    def predict_alone(
        self, component: Component, values: Sequence[Any], timeout: float, *, plain: bool = False
    ) -> Outcomes:
        """The outcomes of values that share no batch; see `predict` and `predict_plainly`."""
        return self._on_host(component, lambda host: host.predict(values, timeout, plain=plain))

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

    # Another form -----------------------------------------------------------------------------

    def reload(self, component: Component) -> None:
        """Load a model anew in the form that is wished for; it answers in the old one meanwhile.

        Returns once it is loaded. Raises what loading raises.
        """
        fresh = self._made(component)
        try:
            fresh.host.predict([])
        except BaseException:
            fresh.end()
            raise
        with self._lock:
            old = self._entries.pop(component.id, None)
            self._entries[component.id] = fresh
            if old is not None:
                self._retire(old)
            self._make_room()
            is_closed = self._closed
        if is_closed:
            self.close()

    def follow(self, component: Component) -> None:
        """Begin to reload a model that is loaded, if another form of it is wished for since."""
        with self._lock:
            entry = self._entries.get(component.id)
        if entry is None or not entry.host.is_loaded or self._wishes is None:
            return
        set_at = self._wishes(component).set_at
        with self._lock:
            if set_at in (entry.host.wished_at, self._followed.get(component.id, -1)):
                return
            self._followed[component.id] = set_at  # each wish once: it may fail again and again
        threading.Thread(target=self._follow, args=(component,), daemon=True).start()

    def _follow(self, component: Component) -> None:
        try:
            self.reload(component)
        except SuperduperError as error:  # what answers now goes on
            logger.warning("%s: %s", component.id, error, extra={"event": "model.form"})

    def try_out(
        self,
        payload: Payload,
        kind: str,
        sample: Any = None,
        has_sample: bool = False,
        wish: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Load a component in a fresh child, and run it on its sample; see `loading.try_out`."""
        return loading.try_out(payload, kind, self._launch, sample, has_sample, wish)

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
        is_new = entry is None
        if entry is None:
            entry = self._entries[component.id] = self._made(component)
        self._entries.move_to_end(component.id)
        if is_new:
            self._make_room()
        return entry

    def _made(self, component: Component) -> _Entry:
        figures = Figures()
        host = ModelHost(
            lambda: self._registry.payload(component),
            component.id,
            self._launch,
            figures=figures,
            wishes=None if self._wishes is None else self._wishes(component),
            has_loaded=self._has_loaded,
        )
        batcher = self._make_batcher(
            host,
            component.id,
            timeout=settings.get_number("PREDICT_TIMEOUT"),
            figures=figures,
            **batching(component),
        )
        return _Entry(host, batcher)

    def _has_loaded(self) -> None:
        """A model has been loaded: what it takes is known now."""
        with self._lock:
            self._make_room()

    def _make_room(self) -> None:
        """Let the least recently used go while there are too many, or they take too much."""
        while len(self._entries) > self._max_hosts:
            self._retire(self._entries.popitem(last=False)[1])
        taken = {id: entry.host.memory_mb for id, entry in self._entries.items()}
        for id in list(taken)[:-1]:
            if taken[id] and sum(taken.values()) > self._memory_mb:
                self._retire(self._entries.pop(id))
                del taken[id]

    def _retire(self, entry: _Entry) -> None:
        thread = threading.Thread(target=entry.retire, name="retire model host", daemon=True)
        self._retiring = [pair for pair in self._retiring if pair[1].is_alive()]
        self._retiring.append((entry, thread))
        thread.start()


def batching(component: Component) -> dict[str, Any]:
    """How a model wants its requests grouped: what it said when it was registered."""
    return dict((component.details or {}).get("batching") or {})
