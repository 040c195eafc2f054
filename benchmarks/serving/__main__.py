"""Our server beside others: `python -m benchmarks.serving A --rivals PYTHON`; wants `wrk`.

PYTHON is that of an environment with litserve, mosec and torch (versions: rivals.txt). All servers
are up at the same time and are asked in turn, round by round; each gets one JSON row of 64 floats a
request. With `--forms bf16 int8` ours is there once more in each of these, if it agrees within
`TOLERANCE` on `COMPARED` random inputs. `bodies` instead of a model compares forms of one large row
on our own server.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

import superduper_client
from benchmarks.place import store, until
from benchmarks.serving.models import DIM, PICTURE, SIZES, Mlp

HERE = Path(__file__).parent
CONNECTIONS = (1, 16, 64)
BODY = json.dumps({"inputs": [[round(0.01 * n, 4) for n in range(DIM)]]})
COMPARED, TOLERANCE = 100, 0.05
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Served:
    """One server: where it answers, and its processes."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, token: str = "") -> None:
        self.url = url
        self.token = token
        self._root = psutil.Process(process.pid)

    @classmethod
    def of(cls, other: "Served", url: str) -> "Served":
        """Another address of the same server."""
        made = cls.__new__(cls)
        made.url, made.token, made._root = url, other.token, other._root
        return made

    def processes(self) -> list[psutil.Process]:
        """Its processes."""
        return [self._root, *self._root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """CPU of all processes up to now."""
        times = [process.cpu_times() for process in self.processes()]
        return sum(each.user + each.system for each in times)

    def memory_mb(self) -> int:
        """Proportional set size of all processes."""
        return sum(process.memory_full_info().pss for process in self.processes()) >> 20


@contextlib.contextmanager
def started(command: list[str], **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of its own, ended with what it started."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **THREADS, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=HERE.parents[1],
    )
    children: list[psutil.Process] = []
    try:
        yield process
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.terminate()
        process.wait(timeout=60)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


@contextlib.contextmanager
def ours(model: str, form: str = "plain") -> Iterator[Served]:
    """Our server with tokens, on an embedded store."""
    with store() as client:
        command = [sys.executable, "-m", "superduper_server.cli", "serve", "--uri", client.address]
        command += ["--database", "bench", "--port", "0", "--json"]
        rate = {"SUPERDUPER_TOKEN_RATE": "1000000", "SUPERDUPER_TOKEN_AT_ONCE": "1000"}
        with started(command, **rate) as process:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            with superduper_client.connect(ready["url"], token=ready["token"]) as http:
                docs = http["bench"]["docs"]
                sizes = {**SIZES, **PICTURE}[model]
                docs.create_model("model", Mlp(sizes), sample=torch.zeros(sizes[0]))
                inputs = list(torch.randn(COMPARED, sizes[0]))
                told = docs.model("model").set_form(form, inputs, tolerance=TOLERANCE)
                if told["report"] is not None:
                    print(form, told["report"], flush=True)
            path = "/v1/collections/docs/models/model/predict"
            yield Served(process, ready["url"] + path, ready["token"])


@contextlib.contextmanager
def rival(name: str, python: str, model: str) -> Iterator[Served]:
    """One of the others."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    program = str(HERE / f"rival_{name}.py")
    arguments = [model, port] if name == "litserve" else ["--port", port]
    path = "predict" if name == "litserve" else "inference"
    with started([python, program, *arguments], MODEL=model) as process:
        yield Served(process, f"http://127.0.0.1:{port}/{path}")


def answers(served: Served) -> bool:
    """Whether it gives an answer of ten numbers."""
    request = urllib.request.Request(served.url, BODY.encode(), headers_of(served))
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
        return len(json.loads(answer.read())["outputs"][0]) == 10
    return False


def headers_of(served: Served) -> dict[str, str]:
    """What is sent with each request."""
    token = {"Authorization": f"Bearer {served.token}"} if served.token else {}
    return {"Content-Type": "application/json", **token}


def measure(
    served: Served,
    connections: int,
    seconds: int,
    content: bytes = BODY.encode(),
    more: dict[str, str] | None = None,
) -> dict[str, float]:
    """One run of wrk."""
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lua") as script,
        tempfile.NamedTemporaryFile("wb") as body,
    ):
        body.write(content)
        body.flush()
        script.write(f"wrk.method = 'POST'\nwrk.body = io.open('{body.name}', 'rb'):read('*a')\n")
        for name, value in {**headers_of(served), **(more or {})}.items():
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


def run(
    model: str, python: str | None, forms: list[str], rounds: int, seconds: int
) -> dict[str, Any]:
    """Every server at every number of connections, in turn."""
    with contextlib.ExitStack() as stack:
        servers = {"superduper": stack.enter_context(ours(model))}
        for form in forms:
            servers[f"superduper {form}"] = stack.enter_context(ours(model, form))
        for name in ("mosec", "litserve") if python else ():
            servers[name] = stack.enter_context(rival(name, str(python), model))
        for name, served in servers.items():
            until(lambda served=served: answers(served), name, pause=0.5)
        rows: dict[tuple[str, int], list[dict[str, float]]] = {}
        for number in range(rounds):
            for connections in CONNECTIONS:
                order = list(servers)[number % len(servers) :] + list(servers)
                for name in dict.fromkeys(order):
                    row = measure(servers[name], connections, seconds)
                    rows.setdefault((name, connections), []).append(row)
                    print(name, connections, {k: round(v, 2) for k, v in row.items()}, flush=True)
        memory = {name: served.memory_mb() for name, served in servers.items()}
    medians = [
        {
            "server": name,
            "connections": connections,
            **{key: round(statistics.median(r[key] for r in found), 2) for key in found[0]},
        }
        for (name, connections), found in rows.items()
    ]
    raw = [{"server": n, "connections": c, "rounds": found} for (n, c), found in rows.items()]
    return {"model": model, "medians": medians, "memory_mb": memory, "raw": raw}


def run_bodies(rounds: int, seconds: int) -> dict[str, Any]:
    """Our server on one row of 12,288 floats, as JSON in both dialects and as a binary tensor."""
    width = PICTURE["picture"][0]
    numbers = [round(0.001 * n, 3) for n in range(width)]
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, width]}
    forms: dict[str, tuple[str, bytes, dict[str, str]]] = {
        "JSON": ("", json.dumps({"inputs": [numbers]}).encode(), {}),
        "JSON, V2": ("v2", json.dumps({"inputs": [{**tensor, "data": numbers}]}).encode(), {}),
        "binary, V2": (
            "v2",
            torch.tensor(numbers).numpy().tobytes(),
            {"Inference-Header-Content-Length": "0"},
        ),
    }
    rows: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    with ours("picture") as served:
        v2 = Served.of(served, served.url.partition("/v1/")[0] + "/v2/models/docs.model/infer")
        for _ in range(rounds):
            for form, (dialect, content, more) in forms.items():
                row = measure(v2 if dialect else served, 16, seconds, content, more)
                rows[form].append(row)
                print(form, {k: round(v, 2) for k, v in row.items()}, flush=True)
    medians = {
        form: {key: round(statistics.median(r[key] for r in found), 2) for key in found[0]}
        for form, found in rows.items()
    }
    return {"connections": 16, "floats": width, "medians": medians, "raw": rows}


def main() -> None:
    """Run, print and keep."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__)
    parser.add_argument("model", choices=[*SIZES, "bodies"])
    parser.add_argument("--rivals", help="the Python of the others' environment")
    parser.add_argument("--forms", nargs="*", default=[], help="Faster forms of ours, as well.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    options = parser.parse_args()
    began = time.monotonic()
    if options.model == "bodies":
        result = run_bodies(options.rounds, options.seconds)
    else:
        result = run(options.model, options.rivals, options.forms, options.rounds, options.seconds)
    result |= {
        "command": "python -m benchmarks.serving "
        + " ".join("PYTHON" if each == options.rivals else each for each in sys.argv[1:]),
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - began, 1),
        "load": [round(each, 1) for each in os.getloadavg()],
        "cores": os.cpu_count(),
    }
    text = json.dumps(result, indent=2) + "\n"
    (HERE.parent / "results" / f"serving_{options.model}.json").write_text(text)


if __name__ == "__main__":
    main()
