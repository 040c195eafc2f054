"""Real servers and commands as processes of their own, and waiting for them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from superduper_server.serve import Server
from tests.waiting import until

BASE_URL = "http://127.0.0.1:8000"
CLI = (sys.executable, "-m", "superduper_server.cli")
DEADLINE_SECONDS = 60.0


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A command that ends by itself."""
    return subprocess.run(
        [*CLI, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        env={**os.environ, **environment},
    )


class Running:
    """A command that stays: its process, its ready line, what it logged."""

    def __init__(self, arguments: tuple[str, ...], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*CLI, *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **environment},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log()
        self.ready: dict[str, Any] = json.loads(line)

    def log(self) -> str:
        """What it wrote to stderr."""
        return self._log.read_text()

    def http(self, **options: Any) -> httpx2.Client:
        """A client of it with its token."""
        token = self.ready["token"]
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        options.setdefault("timeout", 30)
        return httpx2.Client(base_url=self.ready["url"], headers=headers, **options)

    def end(self, number: int = signal.SIGTERM, seconds: float = DEADLINE_SECONDS) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextlib.contextmanager
def running(log: Path, *arguments: str, **environment: str) -> Iterator[Running]:
    """A command that prints a ready line and stays, ended by SIGTERM afterwards."""
    found = Running(arguments, log, environment)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.end()
        assert found.process.stdout is not None
        found.process.stdout.close()


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """A server in a thread of this process."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, what="the server")
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
