"""Filling a collection with twelve documents that kill, hang or confuse the model, and without.

The clock runs from the moment the scan begins until every sound document is filled. A poison
document has its first attempt in that time; the two others come later and hold nobody up.
"""

import itertools
import os
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.place import refill, store, until, worker

ROUNDS = 3


def sound(value: Any) -> Any:
    """What the model makes of any other value."""
    return value + 1


def _endless() -> Any:
    while True:
        time.sleep(1)


POISON: dict[str, Callable[[], Any]] = {
    "raises": lambda: 1 // 0,
    "exits": lambda: (_ for _ in ()).throw(SystemExit(3)),
    "ends its process": lambda: os._exit(4),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfaults": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "eats memory": lambda: len(bytearray(1 << 40)),
    "is large": lambda: "v" * (17 << 20),
    "is nothing": lambda: None,
    "is no number": lambda: float("nan"),
    "cannot be stored": lambda: object(),
    "hangs": _endless,
    "never ends to yield": itertools.count,
}


def model(value: Any) -> Any:
    """A function of one value, as users write it; values by name are poison."""
    return POISON[value]() if isinstance(value, str) else sound(value)


def _documents(count: int, poisoned: bool) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{"_id": each, "x": each} for each in range(count)]
    if poisoned:
        for number, kind in enumerate(POISON):
            made[(2 * number + 1) * count // (2 * len(POISON))]["x"] = kind
    return made


def _seconds(client: Any, count: int, poisoned: bool) -> float:
    """How long the sound documents take."""
    native = client._mongo["bench"]["docs"]
    scans = client._mongo["bench"]["superduper.imputations"]
    refill(native, _documents(count, poisoned))
    wanted = count - (len(POISON) if poisoned else 0)
    watcher = client["bench"]["docs"].create_watcher("w", model="model", key="x", target="y")

    def scan() -> dict[str, Any]:
        found: dict[str, Any] = scans.find_one({"_id": "docs/w"}, {"scan": 1})["scan"]
        return found

    try:
        until(lambda: scan().get("state") in ("running", "done"), "the scan's beginning")
        began = time.perf_counter()
        until(lambda: scan().get("state") == "done", "the scan's end", pause=0.1)
        seconds = time.perf_counter() - began
        filled = native.count_documents({"y": {"$exists": True}})
        assert filled == wanted, f"{filled} of {wanted} are filled"
        return seconds
    finally:
        watcher.delete()
        # Whoever still led the collection would follow the next inserts, beside the scan.
        leases = client._mongo["bench"]["superduper.watchers"]
        until(lambda: leases.find_one({"_id": "stream:docs"})["owner"] is None, "the leader's end")


def run(small: bool) -> dict[str, Any]:
    """Documents a second without and with poison, and the ratio."""
    count, rounds = (5_000, 1) if small else (50_000, ROUNDS)
    took: dict[bool, list[float]] = {False: [], True: []}
    with store() as client, worker(client.address):
        client["bench"]["docs"].create_model("model", model)
        for number in range(rounds):
            for poisoned in (False, True) if number % 2 == 0 else (True, False):
                took[poisoned].append(_seconds(client, count, poisoned))
    clean, with_poison = (statistics.median(took[each]) for each in (False, True))
    return {
        "documents": count,
        "poison": len(POISON),
        "rounds": rounds,
        "documents_per_second": {
            "without": round(count / clean),
            "with poison": round(count / with_poison),
        },
        "seconds_more": round(with_poison - clean, 2),
        "ratio": clean / with_poison,
    }
