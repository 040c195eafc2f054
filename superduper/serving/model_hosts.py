"""What answers predictions of registered models, wherever the processes are that hold them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from superduper import settings
from superduper.serving import pieces
from superduper.serving.batcher import submit
from superduper.serving.batches import Outcomes, Request
from superduper.serving.figures import ModelState
from superduper.serving.host import Message
from superduper.serving.loading import Payload


class Component(Protocol):
    """A version of a registered model."""

    @property
    def id(self) -> str: ...

    @property
    def details(self) -> Mapping[str, Any]: ...


class ModelHosts(ABC):
    """Answers predictions of any registered model. Safe for several threads; unpickles nothing."""

    @abstractmethod
    def put(self, component: Component, request: Request) -> None:
        """Have a request answered through its `done`; see `Batcher.put`. Never blocks for long."""

    @abstractmethod
    def predict_alone(
        self, component: Component, values: Sequence[Any], timeout: float, *, plain: bool = False
    ) -> Outcomes:
        """The outcomes of values that share no batch; see `predict` and `predict_plainly`."""

    @abstractmethod
    def ask(self, component: Component, message: Message, timeout: float) -> Message:
        """A model process's answer to something else than a prediction; see `ModelHost.ask`."""

    @abstractmethod
    def try_out(
        self,
        payload: Payload,
        kind: str,
        sample: Any = None,
        has_sample: bool = False,
        wish: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Load a component in a fresh child, and run it on its sample; see `loading.try_out`."""

    @abstractmethod
    def states(self) -> list[ModelState]:
        """The models that are loaded, or about to be."""

    @abstractmethod
    def is_loaded(self, component_id: str) -> bool:
        """Whether a model's process is there and has it loaded."""

    @abstractmethod
    def unload(self, component_id: str) -> None:
        """Let a model go once what it was asked has been answered; nothing if it is not loaded."""

    @abstractmethod
    def reload(self, component: Component) -> None:
        """Load a model anew in the form that is wished for; it answers in the old one meanwhile.

        Returns once it is loaded. Raises what loading raises.
        """

    @abstractmethod
    def follow(self, component: Component) -> None:
        """Begin to reload a model that is loaded, if another form of it is wished for since."""

    @abstractmethod
    def close(self) -> None:
        """Answer nothing any more; requests that wait get NotReady."""

    def submit(
        self, component: Component, values: Sequence[Any], timeout: float | None = None
    ) -> "Future[Outcomes]":
        """The outcomes of stored values, to come, in one batch with those of other requests.

        Their turn must come within `timeout` seconds (default: the setting PREDICT_TIMEOUT, which
        is also what a batch may take). Raises TooManyRequests or NotReady; the future gets what
        else can happen.
        """
        seconds = _default_timeout() if timeout is None else timeout
        deadline = time.monotonic() + seconds
        return submit(lambda request: self.put(component, request), values, deadline)

    def predict(
        self, component: Component, values: Sequence[Any], timeout: float | None = None
    ) -> list[dict[str, Any]]:
        """An outcome for each stored value, in order.

        With a timeout the values run by themselves and the model may work that long on a frame of
        them; without one they may share a batch with others. Raises ChildDied or TimedOut if they
        end the model's process, NotReady, TooManyRequests, and what loading raises.
        """
        if timeout is None:
            return list(self.submit(component, values).result())
        return list(self.predict_alone(component, values, timeout))

    def predict_plainly(
        self, component: Component, values: Sequence[Any], timeout: float | None = None
    ) -> list[dict[str, Any]]:
        """The same of the model's plain form, whichever serves: as fills are made."""
        seconds = _default_timeout() if timeout is None else timeout
        return list(self.predict_alone(component, values, seconds, plain=True))

    def pieces(self, component: Component, value: Any) -> Generator[Mapping[str, Any], None, None]:
        """The outcomes of a stored value, piece by piece; see `superduper.serving.pieces`.

        Each has to come within the setting PREDICT_TIMEOUT.
        """
        seconds = _default_timeout()
        return pieces.read(lambda message: self.ask(component, message, seconds), value)

    def load(self, component: Component) -> None:
        """Have the model loaded; returns once it is. Raises what loading raises."""
        self.predict(component, [], timeout=_default_timeout())


def _default_timeout() -> float:
    return settings.get_number("PREDICT_TIMEOUT")
