"""Undo at length: `python tests/imputations/undo.py [--histories N] [--fills N] [--kills N]`.

Random histories are compared with an oracle; then very many fills are taken back by a process that
is killed over and over, while a reader looks on, and put back. Prints one line of JSON; exit status
1 if anything was wrong.
"""

import argparse
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from filling import Filling, record_of
from histories import Histories
from pymongo.database import Database

from superduper.imputations import failures
from superduper.imputations.revert import redo_version, revert_version
from superduper.store.by_id import find_by_ids
from superduper.store.embedded import attach
from superduper.store.mongo import connect_mongo

DOCUMENTS = 500
STEPS = 16
BATCH = 500
READ = 50
POLL_SECONDS = 0.02
COUNTED = 100_000  # which take the embedded store most of a second to count
READ_SECONDS = 0.1
ACTS = {"revert": revert_version, "redo": redo_version}


def play_histories(database: Database[Any], seed: int) -> None:
    """Histories of `DOCUMENTS` documents; AssertionError where they differ from the oracle."""
    histories = Histories(database, seed, DOCUMENTS)
    for _ in range(STEPS):
        histories.step()
        histories.check()


class Reader(threading.Thread):
    """Reads documents all the while; each has its value with its provenance, or neither."""

    def __init__(self, database: Database[Any], count: int) -> None:
        super().__init__(daemon=True)
        self.docs = database["docs"]
        self.count = count
        self.ended = threading.Event()
        self.reads = 0
        self.slowest = 0.0
        self.wrong: list[Any] = []

    def run(self) -> None:
        """Until told to end."""
        chance = random.Random(0)
        while not self.ended.wait(READ_SECONDS):  # the store has other things to do, too
            began = time.monotonic()
            # By their ids: a range has the embedded store look at everything, and undo wait for it.
            for each in find_by_ids(self.docs, chance.sample(range(self.count), READ)):
                whole = each.get("y") == f"of {each['x']}" and each.get("_fill")
                if not whole and ("y" in each or each.get("_fill")):
                    self.wrong.append(each)
                self.reads += 1
            self.slowest = max(self.slowest, time.monotonic() - began)


def fill(database: Database[Any], count: int) -> None:
    """A collection of so many filled documents."""
    failures.prepare(database)  # as a worker does before it fills anything
    filling = Filling(database, lambda x: f"of {x}")
    for start in range(0, count, BATCH):
        ids = list(range(start, min(start + BATCH, count)))
        filling.docs.insert_many({"_id": each, "x": each} for each in ids)
        filling.filler.fill_ids(ids)


def act(uri: str, database: Database[Any], name: str, kills: int) -> dict[str, Any]:
    """Revert or redo in processes of their own, all but the last of which are killed midway."""
    command = [sys.executable, __file__, "--act", name, uri, database.name]
    there = name == "redo"
    began = time.monotonic()
    total = database["docs"].estimated_document_count()
    for number in range(1, kills + 1):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            # What was taken back is noted, and the note goes when it is put back.
            taken = database["superduper.failures"].estimated_document_count()
            if (total - taken if there else taken) > total * number / (kills + 1):
                process.kill()
            time.sleep(max(POLL_SECONDS, total / COUNTED))
    last = subprocess.run(command, capture_output=True, text=True, check=True)
    left = database["docs"].count_documents({"y": {"$exists": not there}})
    seconds = round(time.monotonic() - began, 1)
    return {**json.loads(last.stdout), "left": left, "seconds": seconds}


def act_here(name: str, uri: str, database: str) -> None:
    """Revert or redo version 1, and tell by how many MiB this process has grown."""
    with connect_mongo(uri) as client:
        client[database].command("ping")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        done = ACTS[name](client[database], record_of(), 1)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"done_by_the_last": done, "grown_mib": round(grown / 1024, 1)}))


def tell(what: str) -> None:
    """How far it is."""
    print(time.strftime("%H:%M:%S"), what, file=sys.stderr, flush=True)


def undo_many(uri: str, database: Database[Any], count: int, kills: int) -> dict[str, Any]:
    """Take so many fills back and put them back again."""
    fill(database, count)
    tell(f"{count} filled")
    with connect_mongo(uri) as others:
        reader = Reader(others[database.name], count)
        reader.start()
        told: dict[str, Any] = {}
        for name in ACTS:
            told[name] = act(uri, database, name, kills)
            tell(f"{name}: {told[name]}")
        reader.ended.set()
        reader.join()
    told |= {"reads": reader.reads, "slowest_read_s": round(reader.slowest, 2)}
    return {**told, "wrong": reader.wrong[:3]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/imputations/undo.py")
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--fills", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--act", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act:
        act_here(*options.act)
        return 0
    rounds = math.ceil(options.histories / DOCUMENTS)
    told: dict[str, Any] = {"histories": rounds * DOCUMENTS, "fills": options.fills}
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(attach(Path(folder))) as store,
        connect_mongo(store.address) as client,
    ):
        began = time.monotonic()
        for seed in range(rounds):
            play_histories(client[f"histories_{seed}"], seed)
            client.drop_database(f"histories_{seed}")
        told["histories_seconds"] = round(time.monotonic() - began, 1)
        if options.fills:
            told |= undo_many(store.address, client["many"], options.fills, options.kills)
    print(json.dumps(told))
    return 1 if told.get("wrong") or any(told.get(n, {}).get("left") for n in ACTS) else 0


if __name__ == "__main__":
    sys.exit(main())
