"""The parent's side of the fork server: a process that has imported what is heavy, and forks.

Importing torch takes seconds of CPU and hundreds of megabytes. The fork server does it once for
each parent; its forks are there within milliseconds and share the memory. It runs no user code: a
fork confines itself before it is given any. It ends when its parent does.
"""

import atexit
import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPLY_SECONDS = 120.0
LARGEST_MESSAGE = 1 << 16
# The exit code of a fork whose server ended before it: it went with the server.
UNKNOWN_EXIT = -1000


class ServerGone(OSError):
    """The fork server has ended or does not answer."""


class ForkServer:
    """One server process. Safe for several threads."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._folder = folder
        self._folder_lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._folder_lock, fcntl.LOCK_EX)  # so that nobody takes it for an orphan's
        self._lock = threading.Lock()
        self._control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(REPLY_SECONDS)
        module = "superduper.jobs.fork_server_main"
        with far:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(far.fileno())],
                pass_fds=(far.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def start(
        self, *, entry: str, limits: str, folder: Path, fds: Sequence[int], preload: Sequence[str]
    ) -> "Forked":
        """Fork a child; `fds` are its socket, its lifeline and its output, in this order.

        Raises ServerGone, or OSError if there is no room for another process.
        """
        order = {"entry": entry, "limits": limits, "folder": str(folder), "preload": [*preload]}
        reply = self._ask({"start": order}, fds)
        if "errno" in reply:
            raise OSError(reply["errno"], os.strerror(reply["errno"]))
        return Forked(self, reply["pid"])

    def reap(self, pid: int) -> int:
        """The exit code of an ended child, whose number is free from now on."""
        code: int = self._ask({"reap": pid})["code"]
        return code

    def close(self) -> None:
        """End the process and remove its folder; its forks live on."""
        self._control.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._folder_lock)

    def disown(self) -> None:
        """Close what is open: the process belongs to the one that this process is a fork of."""
        self._control.close()
        os.close(self._folder_lock)
        self._process.returncode = 0

    def _ask(self, request: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        with self._lock:
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], fds)
                answer = self._control.recv(LARGEST_MESSAGE)
            except OSError as error:
                self._process.kill()  # whatever state it is in, nobody can talk to it any more
                raise ServerGone(f"the fork server does not answer: {error}") from error
        if not answer:
            raise ServerGone("the fork server has ended")
        reply: dict[str, Any] = json.loads(answer)
        return reply


class Forked:
    """A forked child, as `process.ProcessGroup` wants it."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server
        # Until it is reaped its number is its own, even if it has ended already.
        self._handle = os.pidfd_open(pid)
        self._poll = select.poll()
        self._poll.register(self._handle, select.POLLIN)

    def exited(self) -> bool:
        """Whether it has ended."""
        return bool(self._poll.poll(0))

    def wait(self) -> None:
        """Wait for its end."""
        self._poll.poll()

    def kill_group(self) -> None:
        """Send SIGKILL to it and all in its process group."""
        if self._server.alive or not self.exited():
            with contextlib.suppress(ProcessLookupError):  # so young that it has no group yet
                os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def reap(self) -> int:
        """The exit code of the ended process, negative for a signal; UNKNOWN_EXIT at times."""
        os.close(self._handle)
        try:
            return self._server.reap(self.pid)
        except ServerGone:
            return UNKNOWN_EXIT

    def disown(self) -> None:
        """Close what is open: the child belongs to the process that this one is a fork of."""
        os.close(self._handle)


_servers: dict[tuple[tuple[str, str], ...], ForkServer] = {}
_serving = threading.Lock()


def server_for(environment: Mapping[str, str], prefix: str) -> ForkServer:
    """The fork server of this process for children with this environment.

    HOME and TMPDIR are set to a folder of the server's own, named like the children's.
    """
    key = tuple(sorted({**environment, "TMPDIR": tempfile.gettempdir()}.items()))
    with _serving:
        server = _servers.get(key)
        if server is not None and not server.alive:
            _servers.pop(key).close()
            server = None
        if server is None:
            folder = Path(tempfile.mkdtemp(prefix=prefix))
            own = {**environment, "HOME": str(folder), "TMPDIR": str(folder)}
            server = _servers[key] = ForkServer(own, folder)
        return server


@atexit.register
def _close_all() -> None:
    while _servers:
        _servers.popitem()[1].close()


def _disown_all() -> None:
    """In a fork of this process: the servers' ends must not stay open in it."""
    global _serving
    _serving = threading.Lock()
    while _servers:
        _servers.popitem()[1].disown()


os.register_at_fork(after_in_child=_disown_all)


def relabel(name: str, value: str) -> None:
    """Write over the place where the kernel shows this process's first environment.

    By it a child's processes are found and ended that have left its process group. `value` must be
    as long as what is there. To be called in a fork, before the variable is set in another way.
    """
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    place = getenv(os.fsencode(name))
    new = os.fsencode(value)
    if place is None or len(ctypes.string_at(place)) != len(new):
        raise ValueError(f"{name} cannot hold {value!r}: its length differs")
    ctypes.memmove(place, new, len(new))
