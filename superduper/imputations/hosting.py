"""Model hosts put together: the serving side's logic in the child processes of the jobs side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from superduper.jobs.channel import Channel, serve
from superduper.jobs.child import Child
from superduper.jobs.place import Place
from superduper.serving.host import Wishes
from superduper.serving.hosts import Hosts, Payloads

ENTRY = "superduper.imputations.hosting:main"


def main(channel: Channel) -> None:
    """The entry of a model host's child process."""
    from superduper.serving.hosted import Hosted

    serve(channel, Hosted(Place(Path.cwd())).handlers())


def launch(name: str) -> Child:
    """A child, not started yet, that can hold a component."""
    return Child(ENTRY, name=name)


def open_hosts(
    registry: Payloads, wishes: Callable[[Any], Wishes] | None = None, *, max_hosts: int = 8
) -> Hosts:
    """The model hosts of this process, for the components of a registry.

    Without `wishes` models have their plain form.
    """
    return Hosts(registry, launch, wishes, max_hosts=max_hosts)
