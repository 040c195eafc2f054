"""Which boundaries hold user code on this machine: a child is started to find out."""

from typing import Any

from superduper.jobs.channel import Channel, serve
from superduper.jobs.child import Child
from superduper.jobs.limits import BOUNDARIES

ENTRY = "superduper.jobs.boundaries:main"
PATIENCE_SECONDS = 60.0


def boundaries() -> dict[str, bool]:
    """Each boundary in words, and whether it holds a child here.

    Raises NotReady if no child can be started.
    """
    with Child(ENTRY) as child:
        child.request({"op": "stand"}, timeout=PATIENCE_SECONDS)
        held = child.held or {}
    return {text: held.get(name, False) for name, text in BOUNDARIES.items()}


def main(channel: Channel) -> None:
    """The entry of the child."""

    def stand(_: dict[str, Any]) -> dict[str, Any]:
        return {}

    serve(channel, {"stand": stand})
