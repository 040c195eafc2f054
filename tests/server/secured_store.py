"""The embedded store's server with TLS, users and passwords, as a process of its own."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.server.certificates import make_certificate
from tests.waiting import until

PROGRAM = Path(sys.executable).with_name("secantusd-py")
PASSWORD = "geheim-hunter2-geheim"

needs_program = pytest.mark.skipif(
    not PROGRAM.exists(), reason="needs the embedded store's program"
)


class SecuredStore:
    """The program on a folder and a port of its own, with what it logs in `log` there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate, self._key = make_certificate(folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    @contextmanager
    def open_to_all(self) -> Iterator[MongoClient[dict[str, Any]]]:
        """A client of it while it asks for no password: to make users."""
        with self._started(), MongoClient[dict[str, Any]](self.uri()) as client:
            yield client

    @contextmanager
    def secured(self) -> Iterator[None]:
        """It runs, and asks for a password."""
        with self._started("--auth"):
            yield

    @contextmanager
    def _started(self, *more: str) -> Iterator[None]:
        command = [str(PROGRAM), "--port", str(self.port), "--storage-path", str(self.folder / "s")]
        tls = ["--tls-cert-file", self.certificate, "--tls-key-file", self._key]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen([*command, *tls, *more], stdout=log, stderr=log)
        try:
            until(self._listens, what="the secured store")
            yield
        finally:
            process.terminate()
            process.wait(30)

    def _listens(self) -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", self.port)) == 0

    def uri(self, user: str = "", password: str = PASSWORD) -> str:
        """Its address for a user."""
        who = f"{user}:{password}@" if user else ""
        where = f"mongodb://{who}127.0.0.1:{self.port}/main"
        return f"{where}?authSource=admin&tls=true&tlsCAFile={self.certificate}"
