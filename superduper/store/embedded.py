"""The embedded store: a folder with a server of its own, shared by every program that attaches."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

from superduper import settings
from superduper.errors import InvalidInput, NotReady
from superduper.store import disks
from superduper.store.folder import Folder, Lock, State
from superduper.store.servers import Server, answers, find_server

START_SECONDS = 150.0  # longer than a keeper gives its server
FULL_DISK_SECONDS = 5.0
POLL_SECONDS = 0.05
WATCH_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Attachment:
    """One program's use of an embedded store, until `close()` or its end."""

    def __init__(self, folder: Folder, server: str, address: str, locks: list[Lock]) -> None:
        self.address = address
        self._folder = folder
        self._server = server
        self._locks = locks
        self._closed = threading.Event()
        disks.watch(folder.path)
        self._watcher = threading.Thread(target=self._watch, name="superduper-store", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        """Start a new keeper if ours was killed: it takes the same port, so clients go on."""
        while not self._closed.wait(WATCH_SECONDS):
            if self._folder.has_keeper():
                continue
            logger.warning("the keeper of %s has died: starting another", self._folder.path)
            try:
                self.address = _ensure_keeper(self._folder, self._server).address
            except (NotReady, OSError):
                logger.exception("the store at %s does not come back", self._folder.path)

    def close(self) -> None:
        """Detach; the store closes a second after its last user has."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._watcher.join(WATCH_SECONDS)  # it may be waiting for a store that does not come back
        disks.forget(self._folder.path)
        for lock in self._locks:
            lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach(path: str | os.PathLike[str], server: str = "auto", worker: bool = False) -> Attachment:
    """Use the embedded store in a folder, and start its server if nobody has.

    With `worker` a worker runs beside it as long as it is open. Several programs may attach at
    once. Raises MissingExtra if no server is installed, NotReady if it does not start.
    """
    folder = Folder(path)
    chosen = _choose(folder, server).name
    folder.create()
    wanted = [folder.users_lock, folder.worker_lock] if worker else [folder.users_lock]
    locks = [Lock(path) for path in wanted]
    try:
        for lock in locks:
            # A keeper that is closing has it, and lets go of it when all is closed.
            _wait(lock.try_shared, f"the store at {folder.path} is closing, and does not end")
        address = _ensure_keeper(folder, chosen).address
        return Attachment(folder, chosen, address, locks)
    except BaseException:
        for lock in locks:
            lock.close()
        raise


def _choose(folder: Folder, choice: str) -> Server:
    """The server for a folder: the one that made its data, for no other can read it."""
    made_by = folder.made_by()
    if made_by is None:
        return find_server(choice)
    forced = settings.get("STORE") if choice == "auto" else choice
    if forced not in ("auto", made_by):
        raise InvalidInput(
            f"the store at {folder.path} was made by {made_by}, which {forced} cannot read: "
            f"use SUPERDUPER_STORE={made_by}, or another folder"
        )
    return find_server(made_by)


def _ensure_keeper(folder: Folder, server: str) -> State:
    """Where the store's server is, once it answers; starts a keeper if there is none."""
    found: list[State] = []
    patient_until = time.monotonic() + FULL_DISK_SECONDS

    def look() -> bool:
        state = _running(folder) or _start(folder, server)
        found.extend([state] if state else [])
        if not state and time.monotonic() > patient_until:
            _refuse_full_disk(folder)
        return bool(found)

    _wait(look, f"the store at {folder.path} does not answer: see {folder.logs}")
    return found[0]


def _running(folder: Folder) -> State | None:
    """The state of a store whose keeper lives and whose server answers."""
    # The lock first: what is written under a taken lock is by the keeper who has it.
    if not folder.has_keeper():
        return None
    state = folder.read_state()
    return state if state and answers(state.port) else None


def _start(folder: Folder, server: str) -> State | None:
    """Start a keeper, unless there is one or somebody else is about to, and wait for its server."""
    with Lock(folder.start_lock) as lock:
        if not lock.try_exclusive() or folder.has_keeper():
            return None
        folder.remove_state()
        with folder.open_log("keeper") as log:
            command = [sys.executable, "-P", "-m", "superduper.store.keeper"]
            subprocess.run(
                [*command, str(folder.path), server],
                cwd=folder.path,
                env={**os.environ, "SUPERDUPER_HOME": str(settings.home().absolute())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,
            )
        while folder.has_keeper():
            state = _running(folder)
            if state:
                return state
            time.sleep(POLL_SECONDS)
    _refuse_full_disk(folder)
    reason = folder.log_tail("server") or folder.log_tail("keeper")
    raise NotReady(f"the store at {folder.path} does not start ({server}): {reason}")


def _refuse_full_disk(folder: Folder) -> None:
    """Say so if a full disk is why the store does not start."""
    complaint = disks.complaint_of(folder.path)
    if complaint:
        raise NotReady(complaint)


def _wait(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise NotReady(complaint)
        time.sleep(POLL_SECONDS)
