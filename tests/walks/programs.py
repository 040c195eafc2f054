"""Programs that people would write, run as people would run them."""

import contextlib
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import psutil

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def environment(**more: str) -> dict[str, str]:
    """What a program is started with: our own environment, and no address of any data."""
    ours = {key: text for key, text in os.environ.items() if key != "SUPERDUPER_URI"}
    return {**ours, **ENVIRONMENT, **more}


def run_script(text: str, folder: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """Save a program in a folder and run it there until it ends."""
    (folder / "program.py").write_text(text)
    return subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=150,
    )


class Program:
    """A script that stops at its `input()` calls until it is told to go on."""

    def __init__(self, text: str, folder: Path, **more: str) -> None:
        script = folder / f"program-{uuid.uuid4().hex[:8]}.py"
        script.write_text(text)
        self.process = subprocess.Popen(
            [sys.executable, str(script.name)],
            cwd=folder,
            env=environment(**more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def lines(self, count: int) -> list[str]:
        """The next lines that it prints."""
        return [self.line() for _ in range(count)]

    def go_on(self) -> None:
        """Answer its `input()`."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Let it end by itself."""
        self.process.communicate("\n", timeout=60)
        return self.process.returncode

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.communicate()


def processes_of(folder: Path, *roots: int) -> list[psutil.Process]:
    """What runs for a program: its keeper, store and worker, and all that these have started."""
    found = {}
    for process in psutil.process_iter():
        if process.pid in roots or any(str(folder) in part for part in command_of(process)):
            found[process.pid] = process
            with contextlib.suppress(psutil.NoSuchProcess):
                found.update({child.pid: child for child in process.children(recursive=True)})
    return [process for pid, process in found.items() if pid not in roots]


def command_of(process: psutil.Process) -> list[str]:
    """The command line of a process, empty if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def survivors(processes: list[psutil.Process], seconds: float = 20.0) -> list[Any]:
    """Which of them still run after a while."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [(process.pid, command_of(process)) for process in alive]
