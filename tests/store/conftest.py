"""Real servers and real programs for the tests of the store, and registries that are signed for."""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dill
import psutil
import pytest
from pymongo.database import Database

from superduper.store.artifacts import ArtifactStore
from superduper.store.registry import Registry
from superduper.store.servers import answers
from superduper.store.signing import Keyring
from tests.small_disk import small_disk as on_small_disk
from tests.waiting import until

ATTACH = """
import sys
from superduper.store.embedded import attach
attachment = attach(sys.argv[1], worker=sys.argv[2:] == ["worker"])
print(attachment.address, flush=True)
sys.stdin.read()
attachment.close()
"""


class Program:
    """Another program that attaches to a store, until its input ends or it is killed."""

    def __init__(self, path: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", ATTACH, str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def address(self) -> str:
        """What the program got from `attach`; waits for it."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> int:
        """Let the program end by itself."""
        self.process.communicate()
        return self.process.returncode

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.communicate()


def running(path: Path, module: str) -> list[psutil.Process]:
    """The live processes of a store that run a module."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        alive = process.info["status"] != psutil.STATUS_ZOMBIE
        runs = "-m" in command and command[command.index("-m") + 1] == module
        if alive and runs and any(str(path) in part for part in command):
            found.append(process)
    return found


class StoreFolder:
    """A folder for an embedded store, and the processes that keep it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keepers(self) -> list[psutil.Process]:
        """The store's keepers: one at most."""
        return running(self.path, "superduper.store.keeper")

    def servers(self) -> list[psutil.Process]:
        """The store's servers: one at most."""
        return running(self.path, "secantus")

    def workers(self) -> list[psutil.Process]:
        """The workers that the keeper runs: one at most."""
        mine = {keeper.pid for keeper in self.keepers()}
        found = psutil.process_iter(["ppid", "cmdline", "status"])
        return [
            process
            for process in found
            if process.info["ppid"] in mine
            and process.info["status"] != psutil.STATUS_ZOMBIE
            and "superduper.imputations.work" in (process.info["cmdline"] or [])
        ]

    def is_closed(self) -> bool:
        """Whether nothing of the store runs any more."""
        return not self.keepers() and not self.servers()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreFolder]:
    """An empty folder for a store; what a failed test left running is killed."""
    found = StoreFolder(tmp_path / "data")
    yield found
    for process in [*found.keepers(), *found.servers()]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it was about to end by itself
            process.send_signal(signal.SIGKILL)


@pytest.fixture
def small_disk(store: StoreFolder) -> Iterator[Callable[[], object]]:
    """Puts the store on a disk of 25 MB; called, it makes that larger."""
    with on_small_disk(store.path, 25) as disk:
        yield lambda: disk.grow(200)


@pytest.fixture
def program(store: StoreFolder) -> Iterator[Callable[..., Program]]:
    """Start other programs that attach to the store."""
    started: list[Program] = []

    def start(*arguments: str) -> Program:
        started.append(Program(store.path, *arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()


@pytest.fixture
def secantus(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start SecantusDB by hand, with options of its own; answers the address."""
    started: list[subprocess.Popen[bytes]] = []
    config = tmp_path / "secantusd.toml"

    def start(*options: str) -> str:
        config.touch()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "secantus", "--config", str(config), "--port", str(port)]
        command += ["--storage-path", str(tmp_path / f"by-hand-{port}"), "--log-level", "WARNING"]
        started.append(subprocess.Popen([*command, *options], env=dict(os.environ)))
        until(lambda: answers(port))
        return f"mongodb://127.0.0.1:{port}"

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """Keys of this test alone."""
    return Keyring.open(tmp_path / "home")


@pytest.fixture
def registry(database: Database[Any], keyring: Keyring) -> Registry:
    """A registry that signs with them."""
    return Registry(database, ArtifactStore(database, keyring))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was unpickled, by which library."""
    calls: list[str] = []

    def watched(base: type) -> type:
        class Watched(base):  # type: ignore[misc]
            def load(self) -> Any:
                calls.append(base.__module__)
                return super().load()

        return Watched

    monkeypatch.setattr(pickle, "Unpickler", watched(pickle.Unpickler))
    monkeypatch.setattr(dill, "Unpickler", watched(dill.Unpickler))
    return calls
