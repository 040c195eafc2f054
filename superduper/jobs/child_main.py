"""The start of a child process: `python -m superduper.jobs.child_main ENTRY FD LIFELINE LIMITS`.

Imports nothing heavy before the entry, so that a child is there within a tenth of a second.
"""

import importlib
import json
import os
import socket
import sys
import types

from superduper.jobs.channel import Channel, ChannelClosed
from superduper.jobs.limits import Limits, confine


def serve_child(entry: str, fd: int, lifeline: int, limits: str) -> None:
    """Confine this process, import the entry and give it the channel; return when it is closed."""
    for inherited in (fd, lifeline):
        os.set_inheritable(inherited, False)
    channel = Channel(socket.socket(fileno=fd))
    held = confine(Limits(**json.loads(limits)), lifeline)
    sys.argv = [entry]
    # User code that asks for `__main__` finds an empty module, not this one.
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        channel.send({"started": held})
        module, _, function = entry.partition(":")
        getattr(importlib.import_module(module), function)(channel)
    except ChannelClosed:
        sys.exit(0)  # nobody listens any more


if __name__ == "__main__":
    serve_child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
