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


def main() -> None:
    """Confine this process, import the entry and give it the channel; return when it is closed."""
    entry, fd, lifeline, limits = sys.argv[1:5]
    for inherited in (int(fd), int(lifeline)):
        os.set_inheritable(inherited, False)
    channel = Channel(socket.socket(fileno=int(fd)))
    isolated = confine(Limits(**json.loads(limits)), int(lifeline))
    sys.argv = [entry]
    # User code that asks for `__main__` finds an empty module, not this one.
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        channel.send({"started": {"isolated_network": isolated}})
        module, _, function = entry.partition(":")
        getattr(importlib.import_module(module), function)(channel)
    except ChannelClosed:
        sys.exit(0)  # nobody listens any more


if __name__ == "__main__":
    main()
