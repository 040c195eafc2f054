"""A short run of the chaos harness; `scripts/chaos` runs it at any length."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_nothing_is_lost_or_wrong_while_everything_breaks() -> None:
    """Eight workers are killed, and with them the store, the network, the place in the stream."""
    sizes = ["--kills", "8", "--documents", "400", "--seed", "7", "--seconds", "25"]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *sizes],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.stdout, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert ended.returncode == 0, result
    assert result["faults"]["worker kills"] >= 8
    assert result["faults"]["store"] >= 1
    assert result["documents"] == 400
