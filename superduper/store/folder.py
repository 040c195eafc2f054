"""The folder of an embedded store: where its files are, and the locks that say who uses it.

PATH/store        the server's data
PATH/users.lock   shared by everyone who is attached; the kernel lets go of it when a process dies
PATH/worker.lock  shared by those of them who want a worker
PATH/start.lock   exclusive for whoever starts a keeper
PATH/keeper.lock  exclusive for the keeper, as long as it lives
PATH/store.json   the address, written by the keeper once the server answers
PATH/server       the name of the server that wrote the data, for other ones cannot read it
PATH/logs         what keeper, server and worker print

Files are only hints: a store is there if its keeper's lock is taken and its server answers.
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Self

from superduper.errors import InvalidInput

LOG_LIMIT = 10_000_000  # bytes, after which a log starts anew and the old one is kept once


class Lock:
    """One process's hold on a lock file: none, shared or exclusive."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def try_shared(self) -> bool:
        """Take the lock together with others; False if somebody has it alone."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Take the lock alone; False if anybody else has it."""
        return self._try(fcntl.LOCK_EX)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let go of the lock, and keep the file open for the next try."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, and with it this process's hold."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class State:
    """What a keeper says of the server it runs."""

    address: str
    port: int
    pid: int
    server: str


class Folder:
    """The files of one embedded store."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()
        self.data = self.path / "store"
        self.logs = self.path / "logs"
        self.users_lock = self.path / "users.lock"
        self.worker_lock = self.path / "worker.lock"
        self.start_lock = self.path / "start.lock"
        self.keeper_lock = self.path / "keeper.lock"
        self._state = self.path / "store.json"
        self._server = self.path / "server"
        self._port = self.path / "port"

    def create(self) -> None:
        """Make the folders that are not there yet, private to this user.

        Raises InvalidInput if that cannot be done there.
        """
        try:
            for folder in (self.path, self.data, self.logs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"no store can be kept in {self.path}: {error}") from error

    def has_keeper(self) -> bool:
        """Whether a keeper lives."""
        with Lock(self.keeper_lock) as lock:
            return not lock.try_shared()

    def read_state(self) -> State | None:
        """What the keeper said last; None if it has said nothing yet."""
        try:
            return State(**json.loads(self._state.read_bytes()))
        except FileNotFoundError:
            return None

    def write_state(self, state: State) -> None:
        """Tell everyone where the server is."""
        self._replace(self._state, json.dumps(asdict(state)))

    def remove_state(self) -> None:
        """Say that there is no server."""
        self._state.unlink(missing_ok=True)

    def last_port(self) -> int:
        """The port that the store had last, where its clients still look for it; 0 if none."""
        return int(self._port.read_text()) if self._port.exists() else 0

    def remember_port(self, port: int) -> None:
        """Keep the port for the next keeper."""
        self._replace(self._port, str(port))

    def made_by(self) -> str | None:
        """The name of the server that wrote the data; None for a new store."""
        return self._server.read_text().strip() if self._server.exists() else None

    def remember_server(self, name: str) -> None:
        """Keep the name of the server that writes the data."""
        self._replace(self._server, name)

    def open_log(self, name: str) -> BinaryIO:
        """The log file of that name, to append to."""
        path = self.logs / f"{name}.log"
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")

    def log_tail(self, name: str, lines: int = 5) -> str:
        """The last lines of a log, for an error message."""
        path = self.logs / f"{name}.log"
        if not path.exists():
            return ""
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 4096))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def _replace(self, path: Path, text: str) -> None:
        """Write a file so that a reader sees the old or the new text, never a part."""
        draft = path.with_name(f"{path.name}.{os.getpid()}.new")
        draft.write_text(text)
        draft.replace(path)
