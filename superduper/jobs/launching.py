"""How a child process comes to be: forked from a server that has imported what is heavy.

Forks need Linux. Elsewhere each child is a Python of its own: slower, and otherwise the same.
"""

import json
import os
import signal
import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from superduper.jobs.fork_server import server_for
from superduper.jobs.limits import Limits
from superduper.jobs.process import PREFIX, Belongings, Process

FORKS = sys.platform == "linux"
KEPT_VARIABLES = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
)


@dataclass(frozen=True)
class Launch:
    """What is to run in a child: `entry` is "module:function", called with the channel.

    `preload` names modules that the entry or its models will need.
    """

    entry: str
    limits: Limits
    preload: Sequence[str] = ()

    def __call__(self, belongings: Belongings) -> Process:
        """Start it. Raises OSError if the system has no room for another process."""
        return self._fork(belongings) if FORKS else Executed(self._command(belongings), belongings)

    def _fork(self, given: Belongings) -> Process:
        return server_for(environment(os.environ), PREFIX).start(
            entry=self.entry,
            limits=self._limits(),
            folder=given.folder,
            fds=(given.socket, given.lifeline, given.output),
            preload=self.preload,
        )

    def _command(self, given: Belongings) -> list[str]:
        numbers = (str(given.socket), str(given.lifeline))
        module = "superduper.jobs.child_main"
        return [sys.executable, "-P", "-m", module, self.entry, *numbers, self._limits()]

    def _limits(self) -> str:
        return json.dumps(asdict(self.limits))


class Executed:
    """A child that is a new Python."""

    def __init__(self, command: list[str], given: Belongings) -> None:
        own = {"HOME": str(given.folder), "TMPDIR": str(given.folder)}
        self._process = subprocess.Popen(
            command,
            pass_fds=(given.socket, given.lifeline),
            stdin=subprocess.DEVNULL,
            stdout=given.output,
            stderr=subprocess.STDOUT,
            cwd=given.folder,
            env={**environment(os.environ), **own},
            start_new_session=True,
        )
        self.pid = self._process.pid

    def exited(self) -> bool:
        """Whether it has ended; it stays unreaped, so that its number stays its own."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is not None

    def wait(self) -> None:
        """Wait for its end; it stays unreaped."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def kill_group(self) -> None:
        """Send SIGKILL to it and all in its process group."""
        os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """The exit code, negative for a signal."""
        return self._process.wait()

    def disown(self) -> None:
        """Let go of it in a fork of this process: it is no child of the fork."""
        self._process.returncode = 0


def environment(outer: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: nothing of ours but what imports and devices need.

    The hash seed is fixed so that the order of sets cannot make two fits differ. HOME and TMPDIR,
    the child's own folder, come to it.
    """
    kept = {name: outer[name] for name in KEPT_VARIABLES if name in outer}
    own = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
    }
    path = _import_path(outer.get("PYTHONPATH", ""))
    return {**kept, **own, **({"PYTHONPATH": path} if path else {})}


def _import_path(outer: str) -> str:
    """PYTHONPATH, made absolute, and the folder of this package where no installation names it."""
    entries = [str(Path(entry).absolute()) for entry in outer.split(os.pathsep) if entry]
    root = str(Path(__file__).resolve().parents[2])
    installed = (*site.getsitepackages(), site.getusersitepackages())
    if root not in entries and root not in installed:
        entries.append(root)
    return os.pathsep.join(entries)
