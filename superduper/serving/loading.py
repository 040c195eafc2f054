"""A child process that holds a component: what is asked of one until it is ready to be used."""

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from superduper import settings
from superduper.errors import ChildDied, SuperduperError, TimedOut, UserCodeError

Payload = Mapping[str, Any]

LOAD_SECONDS = 120.0
TRIAL_SECONDS = 60.0
FORM_SECONDS = 240.0
WITH_TORCH = ("torch", "superduper.serving.collate")
WISH = ("form", "tolerance", "agreement", "inputs")
NO_FORM: dict[str, Any] = {"serves": "plain", "inputs": 0, "tried": []}


class Child(Protocol):
    """What a host needs of a child process; `superduper.jobs.child.Child` is one."""

    @property
    def alive(self) -> bool: ...

    @property
    def place(self) -> int | None: ...

    def start(self, preload: Sequence[str] = ()) -> None: ...

    def request(
        self, message: Mapping[str, Any], timeout: float | None = None
    ) -> dict[str, Any]: ...

    def kill(self) -> None: ...

    @property
    def bell(self) -> socket.socket | None: ...

    def begin(self, message: Mapping[str, Any]) -> bool: ...

    def push(self) -> bool: ...

    def answer_now(self) -> dict[str, Any] | None: ...

    def answer(self, timeout: float | None = None) -> dict[str, Any]: ...


Launch = Callable[[str], Child]
"""Makes a child (not started yet) of the given name that serves `hosted.Hosted().handlers()`."""


def modules_of(payload: Payload) -> tuple[str, ...]:
    """What a child for this component imports in any case, or else in its first answer."""
    with_torch = payload["record"].get("torch_version") is not None
    return ("superduper.serving.hosted", *(WITH_TORCH if with_torch else ()))


def load(child: Child, payload: Payload, kind: str, name: str) -> dict[str, Any]:
    """Start a child and have it load a component; what it tells of it. Raises what can happen."""
    child.start(modules_of(payload))
    request = {
        "op": "load",
        "kind": kind,
        "name": name,
        "payload": payload,
        "device": settings.get("DEVICE"),
    }
    return child.request(request, LOAD_SECONDS)


def choose_form(child: Child, wish: Mapping[str, Any]) -> dict[str, Any]:
    """`form`, a `choice.Report`, and `memory_mb` after it, of a child that has loaded a model.

    A form that ends the child, or takes too long, has the child killed.
    """
    request = {"op": "choose_form", **{name: wish[name] for name in WISH}}
    try:
        told = child.request(request, FORM_SECONDS)
    except SuperduperError as error:
        child.kill()
        return {"form": {"asked": wish["form"], **NO_FORM, "why": f"it cannot be tried: {error}"}}
    return {"form": told["report"], "memory_mb": told["memory_mb"]}


def try_out(
    payload: Payload,
    kind: str,
    launch: Launch,
    sample: Any = None,
    has_sample: bool = False,
    wish: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Load a component in a fresh child, run a model on its sample if there is one, and tell of it.

    Answers type, load_ms, memory_mb, for models has_confidence and, with a sample, output; with a
    wish for a faster form what became of it, as `form`. Raises
    InvalidInput (a missing module is named), ArtifactRejected or UserCodeError.
    """
    name = str(payload["record"].get("name", ""))
    child = launch(f"{kind} {name}")
    try:
        details = load(child, payload, kind, name)
        if has_sample and kind == "model":
            details |= child.request({"op": "try_sample", "value": sample}, TRIAL_SECONDS)
        if wish is not None:
            details |= choose_form(child, wish)
    except (ChildDied, TimedOut) as error:
        raise UserCodeError(f"{kind} {name!r} failed when it was tried out: {error}") from error
    finally:
        child.kill()
    return details
