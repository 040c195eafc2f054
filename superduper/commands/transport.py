"""What takes commands to where they are answered."""

from collections.abc import Generator
from typing import Any, Protocol

from superduper.command import Command
from superduper.commands.documents import FindDocuments
from superduper.commands.predictions import StreamPrediction


class Transport(Protocol):
    """Where commands go. May block; raises the classes of `superduper.errors`."""

    def send(self, command: Command) -> Any: ...

    def stream(
        self, command: FindDocuments | StreamPrediction
    ) -> Generator[dict[str, Any], None, None]: ...

    def close(self) -> None: ...
