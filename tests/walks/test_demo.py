"""The demo, as `scripts/demo` runs it."""

import re
import subprocess
import sys
import time
from pathlib import Path

from tests.waiting import until
from tests.walks.programs import environment, processes_of


def test_the_demo_fills_digits_and_leaves_nothing_running(tmp_path: Path) -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "superduper_server.demo", "--path", str(tmp_path / "data")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=180
    )
    print(f"the demo took {time.monotonic() - began:.0f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    right = re.search(r"597 missing labels: ([\d.]+)% filled as the held-back truth", done.stdout)
    assert right and float(right[1]) >= 95, done.stdout
    assert re.search(r"filled with '\d' \d+ ms after the insert", done.stdout)
    assert re.search(r'predict → \{"outputs":\["\d"\],"version":\d', done.stdout)
    assert "Next: " in done.stdout.splitlines()[-1]
    until(lambda: not processes_of(tmp_path), what="all processes to end", seconds=20)
