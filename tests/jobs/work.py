"""A worker process for the tests: `python work.py URI DATABASE LEASE GRACE [SKEW]`."""

import os
import signal
import sys
import time
from typing import Any

from pymongo import MongoClient

from superduper.jobs.child import Child
from superduper.jobs.queue import RunningJob
from superduper.jobs.worker import Worker

uri, name, lease, grace, skew = [*sys.argv[1:], "0"][:5]
if float(skew):
    real = time.time
    time.time = lambda: real() + float(skew)  # this machine's clock is wrong
client: MongoClient[dict[str, Any]] = MongoClient(uri, w="majority")
database = client[name]


def note(job: RunningJob) -> dict[str, Any]:
    database["ran"].insert_one({"job": job.id, "pid": os.getpid(), "attempt": job.attempts})
    return {"pid": os.getpid()}


def slow(job: RunningJob) -> dict[str, Any]:
    """Run until the test says so; deaf to everything else."""
    note(job)
    while database["go"].find_one({"_id": job.args.get("go", "go")}) is None:
        time.sleep(0.05)
    return {"pid": os.getpid()}


def poison(job: RunningJob) -> dict[str, Any]:
    note(job)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hang(job: RunningJob) -> dict[str, Any]:
    with Child("tests.jobs.entries:main") as child:
        job.progress({"child": child.pid})
        return child.request({"op": "hang", "in_c": True}, cancel=job.interrupted)


handlers = {"note": note, "slow": slow, "poison": poison, "hang": hang}
worker = Worker(database, handlers, lease_seconds=float(lease), grace_seconds=float(grace))
signal.signal(signal.SIGTERM, lambda *_: worker.stop())
worker.run()
