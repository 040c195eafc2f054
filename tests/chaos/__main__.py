"""Run the chaos harness: `python -m tests.chaos [--kills N] [--documents N] [--seed S] ...`.

Users change documents while an adversary breaks what it can; then the users' own record is compared
with the database. Prints one line of JSON; exit status 1 on any violation. Each round has a store
of its own, so that many of them need no more memory than one.
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

from tests.chaos.adversary import PATIENT, Adversary
from tests.chaos.broken import BREAKS
from tests.chaos.checker import Checker
from tests.chaos.place import FIELDS, Place, place
from tests.chaos.users import User
from tests.waiting import until

WORKER = "superduper.imputations.work"
QUIET_SECONDS = 3.0
SHOWN = 20


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All of it: what was done, what came of it."""
    module = f"tests.chaos.broken {options.broken}" if options.broken else WORKER
    with place(module, FIELDS[: options.imputations]) as here:
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
    result = _judge(here, users, options.converge)
    result["faults"] = dict(adversary.counts)
    result["seconds"] = round(time.monotonic() - began, 1)
    return {"seed": options.seed, **result}


def _users(here: Place, options: argparse.Namespace) -> list[User]:
    return [
        User(
            number,
            here.address,
            world=here.world,
            fields=here.fields,
            seed=options.seed,
            inserts=options.documents // 2,
            seconds=options.seconds,
        )
        for number in range(2)
    ]


def _judge(here: Place, users: list[User], patience: float) -> dict[str, Any]:
    """Wait until all is as it must be, and see that it stays so."""
    known = [each for user in users for each in user.record]
    ended = time.monotonic()
    with MongoClient[dict[str, Any]](here.address, **PATIENT) as client:
        database = client["chaos"]
        while (check := Checker(database, known, here.live, here.fields)).violations:
            here.workers.replace_ended()
            if time.monotonic() - ended > patience:
                break
            time.sleep(0.3)
        converged = time.monotonic() - ended
        if not check.violations:
            time.sleep(QUIET_SECONDS)
            check = Checker(database, known, here.live, here.fields)
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
    parser.add_argument(
        "--imputations", type=int, default=1, choices=range(1, len(FIELDS) + 1), help="of x"
    )
    parser.add_argument("--seed", type=int, default=1, help="of users and faults")
    parser.add_argument("--seconds", type=float, default=180.0, help="over which faults are spread")
    parser.add_argument(
        "--converge",
        type=float,
        default=60.0,
        help="seconds to become whole in",
    )
    parser.add_argument("--rounds", type=int, default=1, help="so many runs, with seeds in a row")
    parser.add_argument(
        "--results",
        type=Path,
        help="a file of rounds: those in it are not run again",
    )
    parser.add_argument("--broken", choices=sorted(BREAKS), help="a promise that workers break")
    parser.add_argument("--keep", type=Path, help="a folder to copy the workers' logs to")
    options = parser.parse_args()
    logging.getLogger("superduper").setLevel(logging.ERROR)
    done = _done(options.results)
    violations = sum(result["violation_count"] for result in done.values())
    for seed in range(options.seed, options.seed + options.rounds):
        if seed in done:
            continue
        options.seed = seed
        line = json.dumps(result := run(options))
        violations += result["violation_count"]
        print(line, flush=True)
        if options.results:
            with options.results.open("a") as file:
                file.write(f"{line}\n")
    return 1 if violations else 0


def _done(results: Path | None) -> dict[int, dict[str, Any]]:
    """The rounds that earlier runs have ended, by seed."""
    if results is None or not results.exists():
        return {}
    rounds = [json.loads(line) for line in results.read_text().splitlines()]
    return {each["seed"]: each for each in rounds}


if __name__ == "__main__":
    sys.exit(main())
