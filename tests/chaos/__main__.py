"""Run the chaos harness: `python -m tests.chaos [--kills N] [--documents N] [--seed S] ...`.

Users change documents while an adversary breaks what it can; then the users' own record is compared
with the database. Prints one line of JSON; exit status 1 on any violation.
"""

import argparse
import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from tests.chaos.adversary import Adversary
from tests.chaos.broken import BREAKS
from tests.chaos.checker import Checker
from tests.chaos.place import Place, place
from tests.chaos.users import OPTIONS, User
from tests.waiting import until

WORKER = "superduper.imputations.work"
CONVERGE_SECONDS = 60.0
QUIET_SECONDS = 3.0
SHOWN = 20


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All of it: what was done, what came of it."""
    module = f"tests.chaos.broken {options.broken}" if options.broken else WORKER
    with place(module) as here:
        try:
            return _run_in(here, options)
        finally:
            if options.keep:
                for log in here.folder.rglob("*.log"):
                    shutil.copy(log, options.keep)


def _run_in(here: Place, options: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    here.declare()
    for slot in range(2):
        here.workers.start(slot)
    users = _users(here, options)
    for user in users:
        user.start()
    adversary = Adversary(
        here, users, seed=options.seed, kills=options.kills, seconds=options.seconds
    )
    try:
        until(lambda: any(user.counts["insert"] for user in users), 30, "the first insert")
        adversary.run()
        for user in users:
            user.join(options.seconds + 60)
    finally:
        for user in users:
            user.halt.set()
            user.join(60)
    for user in users:
        if user.error is not None or user.is_alive():
            raise RuntimeError(f"{user.name} did not end well") from user.error
    result = _judge(here, users)
    result["faults"] = dict(adversary.counts)
    result["seconds"] = round(time.monotonic() - began, 1)
    return {"seed": options.seed, **result}


def _users(here: Place, options: argparse.Namespace) -> list[User]:
    share = {"world": here.world, "inserts": options.documents // 2, "seconds": options.seconds}
    return [User(number, here.address, seed=options.seed, **share) for number in range(2)]


def _judge(here: Place, users: list[User]) -> dict[str, Any]:
    """Wait until all is as it must be, and see that it stays so."""
    known = [each for user in users for each in user.record]
    ended = time.monotonic()
    with MongoClient[dict[str, Any]](here.address, **OPTIONS) as client:
        database = client["chaos"]
        while (check := Checker(database, known, here.live)).violations:
            here.workers.replace_ended()
            if time.monotonic() - ended > CONVERGE_SECONDS:
                break
            time.sleep(0.3)
        converged = time.monotonic() - ended
        if not check.violations:
            time.sleep(QUIET_SECONDS)
            check = Checker(database, known, here.live)
        watcher = database["superduper.watchers"].find_one({"_id": "stream:docs"}) or {}
    operations = sum((user.counts for user in users), start=type(users[0].counts)())
    return {
        "operations": dict(operations),
        **check.counts,
        "history_lost": watcher.get("counters", {}).get("history_lost", 0),
        "leaders": watcher.get("fence", 0),
        "workers_ended": here.workers.ended,
        "converged_seconds": round(converged, 1),
        "violation_count": len(check.violations),
        "violations": check.violations[:SHOWN],
    }


def main() -> int:
    """Read the options, run, print."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=40, help="of workers; other faults with them")
    parser.add_argument("--documents", type=int, default=5_000, help="that the users insert")
    parser.add_argument("--seed", type=int, default=1, help="of users and faults")
    parser.add_argument("--seconds", type=float, default=180.0, help="over which faults are spread")
    parser.add_argument("--broken", choices=sorted(BREAKS), help="a promise that workers break")
    parser.add_argument("--keep", type=Path, help="a folder to copy the workers' logs to")
    options = parser.parse_args()
    logging.getLogger("superduper").setLevel(logging.ERROR)
    result = run(options)
    print(json.dumps(result), flush=True)
    return 1 if result["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
