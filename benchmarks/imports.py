"""Milliseconds to import and to print help, beside an interpreter that does nothing."""

import statistics
import subprocess
import sys
import time
from typing import Any

COMMANDS = {
    "python, nothing": ["-c", "pass"],
    "import superduper": ["-c", "import superduper"],
    "import superduper_client": ["-c", "import superduper_client"],
    "superduper --help": ["-m", "superduper_server.cli", "--help"],
    "import torch": ["-c", "import torch"],
}


def run(small: bool) -> dict[str, Any]:
    """Medians in milliseconds; and whether torch was imported."""
    found: dict[str, Any] = {"milliseconds": {}}
    for name, arguments in COMMANDS.items():
        times = []
        for _ in range(3 if small else 9):
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        found["milliseconds"][name] = round(statistics.median(times) * 1000)
    check = "import sys, superduper, superduper_client; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)
    found["torch_imported"] = output.stdout.decode().strip() == "True"
    return found
