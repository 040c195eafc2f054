"""A million orders of events: `python -m tests.interleavings [--count N] [--seed S]`.

Prints one line of JSON with what happened how often; exit status 1 at the first violation.
"""

import argparse
import json
import sys
import time
from collections import Counter
from typing import Any

from tests.interleavings.simulation import Interleaving, Violation


def run(count: int, seed: int) -> dict[str, Any]:
    """Play `count` interleavings and answer what happened."""
    began = time.process_time()
    total: Counter[str] = Counter()
    violation = None
    for number in range(count):
        try:
            total += Interleaving(f"{seed} {number}").run()
        except Violation as error:
            violation = f"interleaving {number}: {error}"
            break
        total["interleavings"] += 1
    seconds = round(time.process_time() - began, 1)
    return {"seed": seed, "cpu_seconds": seconds, **total, "violation": violation}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interleavings")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    result = run(options.count, options.seed)
    print(json.dumps(result))
    return 0 if result["violation"] is None else 1


if __name__ == "__main__":
    sys.exit(main())
