"""A process with its own session and private folder: start, watch, and end it without a trace."""

import atexit
import contextlib
import fcntl
import logging
import os
import select
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from superduper.jobs import place

logger = logging.getLogger(__name__)

PREFIX = "superduper-child-"
TAIL_BYTES = 8192
LAST_READS = 64
KILL_SECONDS = 20.0
ORPHAN_SECONDS = 60.0


@dataclass(frozen=True)
class Belongings:
    """What a process is given: three file numbers, and a folder of its own.

    One end of a socket, the lifeline (a pipe that only tells that the parent lives), and where what
    it prints goes.
    """

    socket: int
    lifeline: int
    output: int
    folder: Path


class Process(Protocol):
    """A started process that leads a process group."""

    pid: int

    def exited(self) -> bool:
        """Whether it has ended; it stays unreaped, so that its number stays its own."""

    def wait(self) -> None:
        """Wait for its end; it stays unreaped."""

    def kill_group(self) -> None:
        """Send SIGKILL to it and all in its process group."""

    def reap(self) -> int:
        """The exit code of the ended process, negative for a signal."""

    def disown(self) -> None:
        """Close what is open: it belongs to the process that this one is a fork of."""


_living: "set[ProcessGroup]" = set()


@atexit.register
def _end_all() -> None:
    for group in list(_living):
        group.kill()


def _disown_all() -> None:
    """In a fork of this process: let go of children that are not its own."""
    for group in list(_living):
        group.disown()
    _living.clear()


os.register_at_fork(after_in_child=_disown_all)


class ProcessGroup:
    """One started process and everything it starts; `kill` ends all of it and removes its folder.

    `start` starts the process and is told what it is to be given.
    """

    def __init__(self, start: Callable[[Belongings], Process]) -> None:
        _sweep_orphans()
        self._output_open = True
        self._tail = bytearray()
        self._ending = threading.Lock()
        self.returncode: int | None = None
        self.place: int | None = None
        """Where it was in its work when it ended, if it said so; see `superduper.jobs.place`."""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            self.socket, far = socket.socketpair()
            ours.enter_context(self.socket)
            theirs.enter_context(far)
            lifeline, our_lifeline = os.pipe()
            theirs.callback(os.close, lifeline)
            ours.callback(os.close, our_lifeline)
            self._output, output = os.pipe()
            theirs.callback(os.close, output)
            ours.callback(os.close, self._output)
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            ours.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._place = place.make(self.folder)
            ours.callback(os.close, self._place)
            try:
                self._process = start(Belongings(far.fileno(), lifeline, output, self.folder))
            except BaseException:
                _remove(self.folder)
                raise
            self._files = ours.pop_all()
        self.pid = self._process.pid
        self.socket.setblocking(False)
        os.set_blocking(self._output, False)
        _living.add(self)

    # Watching --------------------------------------------------------------------------------

    def wait(self, events: int, seconds: float) -> bool:
        """Wait until the socket is ready for these events; meanwhile take in what is printed."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            poll = select.poll()
            poll.register(self.socket, events)
            if self._output_open:
                poll.register(self._output, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(0.0, left) * 1000)}
            if self._output in ready:
                self._drain()
            if self.socket.fileno() in ready:
                return True
            if left <= 0:
                return False

    def _drain(self) -> bool:
        # One read per turn: a process that prints without end must not keep us from its socket.
        try:
            printed = os.read(self._output, 1 << 16)
        except BlockingIOError:
            return False
        self._output_open = bool(printed)
        self._tail += printed
        del self._tail[:-TAIL_BYTES]
        return bool(printed)

    def tail(self) -> str:
        """The last that it printed, at most 8 KiB."""
        return self._tail.decode("utf-8", "replace").strip()

    def forget_output(self) -> None:
        """Start the tail anew."""
        self._tail.clear()

    def exited(self) -> bool:
        """Whether the first process has ended; it stays unreaped, so that its number stays ours."""
        if self.returncode is not None:
            return True
        with self._ending:
            return self.returncode is not None or self._process.exited()

    def wait_for_exit(self, seconds: float) -> bool:
        """Wait until the first process has ended by itself."""
        deadline = time.monotonic() + seconds
        while not self.exited():
            if time.monotonic() >= deadline:
                return False
            if not self._drain():
                time.sleep(0.002)
        return True

    # Ending ----------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Tell the process that nothing more will come."""
        with contextlib.suppress(OSError):  # it has hung up itself
            self.socket.shutdown(socket.SHUT_WR)

    def signal(self) -> None:
        """Send SIGKILL to the whole group; may be called from any thread."""
        with self._ending:
            if self.returncode is None:
                self._process.kill_group()

    def kill(self) -> int:
        """End all that runs, remove the folder; return the exit code (negative: a signal)."""
        with self._ending:
            if self.returncode is not None:
                return self.returncode
            self._process.kill_group()
            self._process.wait()
            _kill_marked(str(self.folder))
            self.returncode = self._process.reap()
        for _ in range(LAST_READS):
            if not self._drain():
                break
        _living.discard(self)
        self.place = place.read(self._place)
        _remove(self.folder)
        self._files.close()
        return self.returncode

    def disown(self) -> None:
        """Close what is open and do no more: the process belongs to the one this is a fork of.

        Above all the lifeline: while a copy holds it, a killed parent leaves its children alive.
        """
        self.returncode = -signal.SIGKILL
        self._process.disown()
        self._files.close()


# What is left behind ----------------------------------------------------------------------------


def _kill_marked(folder: str) -> None:
    """Kill what left the group: every process whose environment still names the private folder."""
    if sys.platform != "linux":
        return
    marker = f"={folder}".encode()
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:  # again, while it keeps forking
        if not any(
            [_kill_if_marked(int(pid), marker) for pid in os.listdir("/proc") if pid.isdigit()]
        ):
            return
    logger.warning("processes of %s go on starting others", folder)


def _kill_if_marked(pid: int, marker: bytes) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except OSError:  # it has just ended
        return False
    try:
        if marker not in Path(f"/proc/{pid}/environ").read_bytes():
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:  # it has just ended, or is another user's
        return False
    finally:
        os.close(handle)
    return True


def _remove(folder: Path) -> None:
    def unlock(_function: object, path: str, _error: object) -> None:
        os.chmod(os.path.dirname(path), stat.S_IRWXU)
        os.chmod(path, stat.S_IRWXU)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)

    try:
        shutil.rmtree(folder, onerror=unlock)
    except OSError as error:
        logger.warning("the folder %s of an ended process cannot be removed: %s", folder, error)


_swept = threading.Lock()


def _sweep_orphans() -> None:
    """Once per process: remove the folders of children whose parent was killed.

    A living parent holds a lock on each folder; a very young folder may not have its lock yet.
    """
    if not _swept.acquire(blocking=False):
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            found = folder.lstat()
            young = time.time() - found.st_mtime < ORPHAN_SECONDS
            if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or young:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # another process removes it at this moment
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _kill_marked(str(folder))
            _remove(folder)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
