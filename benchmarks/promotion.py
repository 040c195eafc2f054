"""A version that takes over under constant load: lost requests, and p99 against that before."""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import numpy as np

from benchmarks.place import DIM, Wide, store, until
from superduper.service import Service

PATH = "/v1/collections/docs/models/wide/predict"
THREADS = 4
RATE = 50.0  # requests a second, of each thread
SECONDS = 10.0


def run(small: bool) -> dict[str, Any]:
    """p50 and p99 in milliseconds while one version is live, and while the other takes over."""
    seconds = SECONDS / 10 if small else SECONDS
    with store() as client, served(client.address) as url:
        docs, service = client["bench"]["docs"], Service(client._mongo["bench"])
        for width in (256, 512):
            docs.create_model("wide", Wide(width))
        service.context.registry.set_live("docs", "model", "wide", 1)
        heard: list[tuple[float, float, int | None]] = []
        httpx2.post(url + PATH, json=_body(0), timeout=60).raise_for_status()  # it is loaded
        stop = threading.Event()
        threads = [
            threading.Thread(target=_ask, args=(url, number, stop, heard))
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(heard) > 50, "the first answers")
        began = time.perf_counter()
        time.sleep(seconds)
        promoted = time.perf_counter()
        service.context.registry.set_live("docs", "model", "wide", 2)
        until(lambda: heard[-1][2] == 2, "the other version")
        time.sleep(seconds / 5)
        stop.set()
        for thread in threads:
            thread.join()
        service.close()
    before = [took for at, took, _ in heard if began <= at < promoted]
    during = [took for at, took, _ in heard if at >= promoted]
    first, second = _cuts(before), _cuts(during)
    return {
        "requests": len(heard),
        "lost": sum(version is None for _, _, version in heard),
        "before_ms": first,
        "during_ms": second,
        "p99_ratio": round(second["p99"] / first["p99"], 2),
    }


@contextmanager
def served(address: str) -> Iterator[str]:
    """A server process; its address."""
    command = [sys.executable, "-m", "superduper_server.cli", "serve", "--uri", address]
    arguments = ["--database", "bench", "--port", "0", "--json", "--insecure"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait(timeout=60)


def _ask(url: str, number: int, stop: threading.Event, heard: list[Any]) -> None:
    """Ask at a steady rate, however long an answer takes; each counts from when it was due."""
    body = _body(number)
    with httpx2.Client(base_url=url, timeout=60) as http:
        due = time.perf_counter() + number / THREADS / RATE
        while not stop.is_set():
            time.sleep(max(0.0, due - time.perf_counter()))
            try:
                answer = http.post(PATH, json=body)
                version = answer.json()["version"] if answer.status_code == 200 else None
            except httpx2.TransportError:
                version = None
            heard.append((due, time.perf_counter() - due, version))
            due += 1 / RATE


def _body(number: int) -> dict[str, Any]:
    return {"inputs": [np.random.default_rng(number).normal(size=DIM).tolist()]}


def _cuts(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": round(cuts[49] * 1000, 2), "p99": round(cuts[98] * 1000, 2)}
