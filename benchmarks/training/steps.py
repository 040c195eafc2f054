"""Microseconds per step of Linear(64, 10), batches of 32, beside bare loops and other frameworks.

All have logging, progress and checkpoints on, and run by turns in one process, on a terminal.
"""

import json
import os
import pty
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks import environment

FOLDER = environment.ROOT / ".frameworks"
REQUIREMENTS = Path(__file__).with_name("frameworks.txt")
CONSTRAINTS = environment.ROOT / "constraints.txt"


def run(small: bool) -> dict[str, Any]:
    """Medians over the rounds: CPU and wall time per step, and ratios to the bare loop."""
    interpreter = environment.python(FOLDER, REQUIREMENTS, "--constraint", str(CONSTRAINTS))
    with tempfile.TemporaryDirectory(prefix="superduper-bench-") as folder:
        result = Path(folder) / "result.json"
        command = [interpreter, "-m", "benchmarks.training.steps_rounds", str(result)]
        _on_a_terminal([*command, "--small"] if small else command)
        return dict(json.loads(result.read_text()))


def _on_a_terminal(command: list[str]) -> None:
    """Run a program that sees a terminal, so that progress bars are really drawn."""
    shown, terminal = pty.openpty()
    tail = bytearray()

    def drain() -> None:
        try:
            while some := os.read(shown, 1 << 16):
                tail.extend(some)
                del tail[:-4_000]
        except OSError:  # the program has ended
            return

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=settings, check=False
    )
    os.close(terminal)
    reader.join(timeout=10)
    os.close(shown)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{tail.decode(errors='replace')}")
