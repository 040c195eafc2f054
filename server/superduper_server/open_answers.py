"""The answers that one HTTP process reads piece by piece, so that they end when it does."""

import threading
from contextlib import suppress

from superduper.errors import SuperduperError
from superduper.jobs.channel import Message
from superduper.serving.model_hosts import Component, ModelHosts

CLOSE_SECONDS = 5.0


class OpenAnswers:
    """Asks models for one process, and remembers what it has begun. For several threads."""

    def __init__(self, hosts: ModelHosts) -> None:
        self._hosts = hosts
        self._lock = threading.Lock()
        self._open: dict[tuple[str, int], Component] = {}
        self._is_closed = False

    def ask(self, component: Component, message: Message, timeout: float) -> Message:
        """What the model's process answers; see `superduper.serving.pieces`."""
        found = self._hosts.ask(component, message, timeout)
        if message["op"] == "open_answer":
            with self._lock:
                self._open[component.id, found["answer"]] = component
                is_late = self._is_closed
            if is_late:
                self.close()
        elif "answer" in message and ("outcome" not in found or found["outcome"] is None):
            with self._lock:
                self._open.pop((component.id, message["answer"]), None)
        return found

    def close(self) -> None:
        """The process has ended: nobody wants the rest of its answers. May block."""
        with self._lock:
            self._is_closed = True
            left, self._open = self._open, {}
        for (_, number), component in left.items():
            if self._hosts.is_loaded(component.id):
                with suppress(SuperduperError):  # its process has ended, and the answer with it
                    message = {"op": "close_answer", "answer": number}
                    self._hosts.ask(component, message, CLOSE_SECONDS)
