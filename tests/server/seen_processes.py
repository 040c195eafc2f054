"""What anybody on the machine could see of processes while they ran, in /proc."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

PAUSE_SECONDS = 0.05


class Seen:
    """Command lines of all descendants of this process, environments of its children's."""

    def __init__(self) -> None:
        self.command_lines: set[str] = set()
        self.environments: dict[int, str] = {}
        self._once: set[int] = set()

    def look(self) -> None:
        """Note all that run now."""
        for process in psutil.Process().children(recursive=True):
            folder = Path(f"/proc/{process.pid}")
            with contextlib.suppress(OSError, psutil.Error):  # it ended just now
                self.command_lines.add((folder / "cmdline").read_text(errors="replace"))
                # What was just forked has its parent's environment until it has become itself.
                if process.pid in self._once and process.ppid() != os.getpid():
                    environment = (folder / "environ").read_text(errors="replace")
                    self.environments[process.pid] = environment
                self._once.add(process.pid)


@contextlib.contextmanager
def seen_processes() -> Iterator[Seen]:
    """All descendants of this process that are seen until the end of the block."""
    seen = Seen()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PAUSE_SECONDS):
            seen.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
