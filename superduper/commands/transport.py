"""What takes commands to where they are answered."""

from collections.abc import Iterator
from typing import Any, Protocol

from superduper.command import Command
from superduper.commands.documents import FindDocuments


class Transport(Protocol):
    """Where commands go. May block; raises the classes of `superduper.errors`."""

    def send(self, command: Command) -> Any: ...

    def stream(self, command: FindDocuments) -> Iterator[dict[str, Any]]: ...

    def close(self) -> None: ...
