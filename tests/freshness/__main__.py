"""Edits of fields that depend on each other: `python -m tests.freshness [--scripts N] [--seed S]`.

Exit status 1 with the first script whose model runs, reads or values differ from the oracle's.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from superduper.store.embedded import attach
from superduper.store.mongo import connect_mongo
from tests.freshness.scripts import Script

EDITS = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.freshness")
    parser.add_argument("--scripts", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began, runs, wrong = time.monotonic(), 0, None
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(attach(Path(folder))) as store,
        connect_mongo(store.address) as client,
    ):
        for number in range(options.scripts):
            name = f"script_{number}"
            try:
                runs += Script(client[name], f"{options.seed} {number}").run(EDITS)
            except AssertionError as error:
                wrong = f"script {number}: {error}"
                break
            client.drop_database(name)
    seconds = round(time.monotonic() - began, 1)
    told = {"scripts": options.scripts, "edits": EDITS, "model_runs": runs, "seconds": seconds}
    print(json.dumps({**told, "wrong": wrong}))
    return 0 if wrong is None else 1


if __name__ == "__main__":
    sys.exit(main())
