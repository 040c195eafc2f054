"""Servers as processes: started, asked by `wrk`, and what they cost."""

import contextlib
import copy
import json
import os
import re
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving.models import ROW

HERE = Path(__file__).parent
BODY = json.dumps({"inputs": [ROW]}).encode()
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Served:
    """One server: where it answers, and its processes.

    `body` is what it is asked, `rows_in` what finds the rows of numbers in its answer.
    """

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        url: str,
        token: str = "",
        body: bytes = BODY,
        rows_in: Callable[[Any], Any] = lambda answer: answer["outputs"],
    ) -> None:
        self.url = url
        self.token = token
        self.body = body
        self.rows_in = rows_in
        self._root = psutil.Process(process.pid)

    @classmethod
    def of(cls, other: "Served", url: str) -> "Served":
        """Another address of the same server."""
        made = copy.copy(other)
        made.url = url
        return made

    def processes(self) -> list[psutil.Process]:
        """Its processes."""
        return [self._root, *self._root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """CPU of all processes up to now."""
        times = [process.cpu_times() for process in self.processes()]
        return sum(each.user + each.system for each in times)

    def answer(self) -> Any:
        """Rows of numbers that it answers with; None while it does not."""
        request = urllib.request.Request(self.url, self.body, self.headers)
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
            return self.rows_in(json.loads(answer.read()))
        return None

    @property
    def headers(self) -> dict[str, str]:
        """What is sent with each request."""
        token = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return {"Content-Type": "application/json", **token}

    def memory_mb(self) -> int:
        """Proportional set size of all processes."""
        return sum(process.memory_full_info().pss for process in self.processes()) >> 20


@contextlib.contextmanager
def started(
    command: list[str], stdout: int = subprocess.DEVNULL, **environment: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of its own, ended with what it started."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **THREADS, **environment},
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        cwd=HERE.parents[1],
    )
    try:
        yield process
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(timeout=60)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def measure(
    served: Served,
    connections: int,
    seconds: int,
    content: bytes | None = None,
    more: dict[str, str] | None = None,
) -> dict[str, float]:
    """One run of wrk."""
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lua") as script,
        tempfile.NamedTemporaryFile("wb") as body,
    ):
        body.write(served.body if content is None else content)
        body.flush()
        script.write(f"wrk.method = 'POST'\nwrk.body = io.open('{body.name}', 'rb'):read('*a')\n")
        for name, value in {**served.headers, **(more or {})}.items():
            script.write(f"wrk.headers['{name}'] = '{value}'\n")
        script.flush()
        before = served.cpu_seconds()
        options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s"]
        said = subprocess.run(
            ["wrk", *options, "-s", script.name, served.url],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        cpu = served.cpu_seconds() - before
    counted = re.search(r"(\d+) requests in", said)
    assert counted and "Non-2xx" not in said, said
    count = int(counted[1])
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert rate
    return {
        "per_second": float(rate[1]),
        "p50_ms": milliseconds(said, "50%"),
        "p99_ms": milliseconds(said, "99%"),
        "cpu_us": cpu / count * 1e6,
    }


def milliseconds(said: str, share: str) -> float:
    """A latency that wrk printed."""
    found = re.search(rf"{share}\s+([\d.]+)(us|ms|s)\b", said)
    assert found, said
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]
