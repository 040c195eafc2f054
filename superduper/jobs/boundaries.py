"""What user code has on this machine, and is kept from: a child is started to find out."""

from typing import Any

from superduper import settings
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


def device() -> str:
    """What models compute on: a GPU's name, or cpu.

    Raises NotReady if no child can be started, InvalidInput if there is no such device, and
    UserCodeError if torch cannot be imported.
    """
    with Child(ENTRY) as child:
        request = {"op": "device", "name": settings.get("DEVICE")}
        return str(child.request(request, timeout=PATIENCE_SECONDS)["device"])


def main(channel: Channel) -> None:
    """The entry of the child."""

    def stand(_: dict[str, Any]) -> dict[str, Any]:
        return {}

    def device(message: dict[str, Any]) -> dict[str, Any]:
        from superduper.devices import child_device, device_name

        return {"device": device_name(child_device(message["name"]))}

    serve(channel, {"stand": stand, "device": device})
