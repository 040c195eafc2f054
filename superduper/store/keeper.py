"""The keeper of an embedded store: runs its server and worker until the last user has gone.

Started by `superduper.store.embedded` as `python -m superduper.store.keeper PATH SERVER`. It takes
the keeper's lock, goes on in the background and ends the foreground process, so that whoever
started it knows that the store is being kept. Everything it starts dies with it.
"""

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from superduper.errors import NotReady
from superduper.store.folder import Folder, Lock, State
from superduper.store.logs import log_to_stderr
from superduper.store.servers import LOOPBACK, Server, find_server

WORKER_COMMAND = (sys.executable, "-P", "-m", "superduper.imputations.work")
TICK_SECONDS = 0.25
USERS_TICKS = 2  # look for users each so many ticks
IDLE_LOOKS = 2  # close after so many looks without any
HEALTH_TICKS = 8
BROKEN_LOOKS = 2  # a server that is broken so many times in a row is started anew
HUNG_SECONDS = 30.0  # so is one that for so long is silent and uses less of the processor than this
HUNG_CPU_SECONDS = 0.5
START_ATTEMPTS = 3
READY_SECONDS = 120.0  # a large log may have to be replayed
WORKER_GRACE_SECONDS = 10.0
SERVER_GRACE_SECONDS = 30.0
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 10.0
STEADY_SECONDS = 30.0  # after running so long, a child's failures are forgotten
PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


class Kept:
    """A child process that is started again when it ends, more patiently each time."""

    def __init__(
        self, name: str, command: list[str], folder: Folder, environment: dict[str, str]
    ) -> None:
        self.name = name
        self._command = command
        self._folder = folder
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._next_start = 0.0
        self._backoff = FIRST_BACKOFF_SECONDS

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process's id, None before the first start."""
        return self._process.pid if self._process else None

    def tend(self) -> bool:
        """Start the process if it should run now and does not; True if it was started."""
        now = time.monotonic()
        if self.running:
            if now - self._started_at > STEADY_SECONDS:
                self._backoff = FIRST_BACKOFF_SECONDS
            return False
        if self._process is not None:
            logger.warning("the %s ended with %s", self.name, self._process.returncode)
            self._process = None
            self._next_start = now + self._backoff
            self._backoff = min(2 * self._backoff, LONGEST_BACKOFF_SECONDS)
        if now < self._next_start:
            return False
        self._start()
        return True

    def _start(self) -> None:
        keeper = os.getpid()
        libc = ctypes.CDLL(None)

        def die_with_keeper() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != keeper:
                os._exit(1)

        with self._folder.open_log(self.name) as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_keeper if sys.platform == "linux" else None,
            )
        self._started_at = time.monotonic()

    def kill(self) -> None:
        """End the process at once; `tend` starts it again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, grace_seconds: float) -> None:
        """End the process: ask first, kill it if it is still there after the grace."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            logger.warning("the %s did not end in %s s: killed", self.name, grace_seconds)
            self.kill()
        self._process = None


class Silence:
    """How long a process has answered nothing and done nothing: one that is busy does something."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._used = 0.0

    def seconds(self, *, silent: bool, used: float) -> float:
        """The seconds until now; `used` is the processor time of the process so far."""
        if not silent:
            self._since = None
            return 0.0
        if self._since is None or not 0 <= used - self._used < HUNG_CPU_SECONDS:
            self._since, self._used = self._clock(), used
        return self._clock() - self._since


def processor_seconds(pid: int) -> float:
    """The processor time that a process has used. Raises OSError if it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_held_up(pid: int) -> bool:
    """Whether a process would go on, had it a processor or its disk. Raises OSError if it is gone.

    On a machine that is overloaded silence means nothing.
    """
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return any(each.read_text().rpartition(")")[2].split()[0] in "RD" for each in threads)


def reserve_port(wanted: int) -> tuple[int, socket.socket]:
    """A free loopback port, the wanted one if it is free, and the socket that keeps it so.

    Bound but not listening, the socket does not hinder a server that binds with SO_REUSEADDR, as
    all of ours do, and nobody else is given the port while the server is being restarted.
    """
    for port in (wanted, 0):
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            reserved.bind((LOOPBACK, port))
        except OSError:
            reserved.close()
            continue
        return reserved.getsockname()[1], reserved
    raise NotReady("no free port on the loopback interface")


class Keeper:
    """Keeps one store; holds the keeper's lock already."""

    def __init__(self, folder: Folder, server: Server) -> None:
        self.folder = folder
        self.server = server
        self._port, self._reserved = reserve_port(folder.last_port())
        self._address = f"mongodb://{LOOPBACK}:{self._port}"
        command = server.command(folder.data, self._port)
        self._store = Kept("server", command, folder, server.environment())
        worker = [*WORKER_COMMAND, self._address]
        self._worker = Kept("worker", worker, folder, dict(os.environ))
        self._worker_wanted = False
        self._users = Lock(folder.users_lock)
        self._worker_users = Lock(folder.worker_lock)
        self._idle = 0
        self._broken = 0
        self._silence = Silence()
        self._ended = False

    def run(self) -> None:
        """Keep the store until its last user has gone, or until SIGTERM."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        try:
            self._open()
            ticks = 0
            while not self._ended:
                time.sleep(TICK_SECONDS)
                ticks += 1
                self._tend()
                if ticks % HEALTH_TICKS == 0:
                    self._kill_if_broken()
                if ticks % USERS_TICKS == 0 and self._users_gone():
                    break
        finally:
            self._close()

    def _end(self, signum: int, frame: object) -> None:
        self._ended = True

    def _open(self) -> None:
        """Start the server for the first time and say where it is."""
        self.folder.remove_state()
        self.folder.remember_server(self.server.name)
        self.folder.remember_port(self._port)
        for _ in range(START_ATTEMPTS):
            self._store.tend()
            if self._wait_ready():
                break
            time.sleep(FIRST_BACKOFF_SECONDS)
        else:
            raise NotReady(f"{self.server.name} does not start: see {self.folder.logs}")
        self.folder.write_state(State(self._address, self._port, os.getpid(), self.server.name))

    def _wait_ready(self) -> bool:
        """Wait until the server takes writes; False if it ended or takes too long."""
        deadline = time.monotonic() + READY_SECONDS
        while self._store.running and time.monotonic() < deadline and not self._ended:
            if self.server.is_ready(self._port):
                return True
            time.sleep(0.05)
        if self._store.running and not self._ended:
            self._store.stop(SERVER_GRACE_SECONDS)
        return self._ended

    def _tend(self) -> None:
        """Start what has died, and the worker as soon as somebody wants one."""
        if self._store.tend():
            self._wait_ready()
        if not self._worker_wanted:
            self._worker_wanted = not self._worker_users.try_exclusive()
            self._worker_users.release()
        if self._worker_wanted and self._store.running:
            self._worker.tend()

    def _kill_if_broken(self) -> None:
        """End a server that is up and can do nothing; it recovers when it is started again."""
        if not self._store.running:
            return
        health = self.server.health(self._port)
        self._broken = self._broken + 1 if health == "broken" else 0
        hangs = self._hangs(silent=health == "silent")
        if hangs or self._broken >= BROKEN_LOOKS:
            what = "hangs" if hangs else "fails at everything"
            logger.error("the server %s: starting it anew", what)
            self._store.kill()
            self._broken, self._silence = 0, Silence()

    def _hangs(self, *, silent: bool) -> bool:
        assert self._store.pid is not None  # it runs
        try:
            silent = silent and not is_held_up(self._store.pid)
            used = processor_seconds(self._store.pid)
        except OSError:  # another system, or it has just ended
            return False
        return self._silence.seconds(silent=silent, used=used) > HUNG_SECONDS

    def _users_gone(self) -> bool:
        """Whether nobody is attached any more; then new users wait for the lock until the end."""
        if not self._users.try_exclusive():
            self._idle = 0
            return False
        self._idle += 1
        if self._idle < IDLE_LOOKS:
            self._users.release()
            return False
        return True

    def _close(self) -> None:
        self._worker.stop(WORKER_GRACE_SECONDS)
        self._store.stop(SERVER_GRACE_SECONDS)
        self.folder.remove_state()
        self._reserved.close()
        self._users.close()
        self._worker_users.close()


def main(path: str, server: str) -> int:
    """Keep the store in a folder; 0 at once if somebody else does."""
    folder = Folder(Path(path))
    lock = Lock(folder.keeper_lock)
    deadline = time.monotonic() + 2.0
    while not lock.try_exclusive():  # others look at the lock for a moment to see if it is taken
        if time.monotonic() > deadline:
            return 0
        time.sleep(0.01)
    if os.fork():
        return 0  # the child goes on, with the lock
    log_to_stderr()
    try:
        Keeper(folder, find_server(server)).run()
    except Exception:
        logger.exception("the keeper failed")
        return 1
    finally:
        lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
