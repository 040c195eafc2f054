"""Run benchmarks: `python -m benchmarks [name ...] [--small]`; see benchmarks/results."""

import argparse
import importlib
import json
import platform
import sys
import time
from pathlib import Path

NAMES = (
    "imports",
    "insert",
    "latency",
    "backfill",
    "memory",
    "poison",
    "fit",
    "explain",
    "promotion",
    "domain",
    "training.steps",
    "training.digits",
    "training.epochs",
)
#: Run only when they are named: tens of minutes, or a GPU, are needed.
NAMED = ("scale", "gpu")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the benchmarks named, or all; print each result and keep it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        choices=[*NAMES, *NAMED, []],
        help=f"which; default: all but {', '.join(NAMED)}",
    )
    parser.add_argument("--small", action="store_true", help="a tenth of the size, to try it out")
    options = parser.parse_args()
    for name in options.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        print(f"== {name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
        started = time.monotonic()
        result = module.run(small=options.small)
        result["seconds"] = round(time.monotonic() - started, 1)
        result["python"] = platform.python_version()
        print(json.dumps(result, indent=2), flush=True)
        if not options.small:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0)


if __name__ == "__main__":
    main()
