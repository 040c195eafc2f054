"""The demo, as `scripts/demo` runs it."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from superduper.store.embedded import attach
from superduper.store.servers import answers
from superduper_server.demo import MARK, begin_anew
from tests.waiting import until
from tests.walks.programs import environment, processes_of


def demo(path: Path) -> "subprocess.CompletedProcess[str]":
    """Run it in a folder."""
    command = [sys.executable, "-m", "superduper_server.demo", "--path", str(path)]
    return subprocess.run(
        command, cwd=path.parent, env=environment(), capture_output=True, text=True, timeout=180
    )


def test_the_demo_removes_nobodys_data(tmp_path: Path) -> None:
    with attach(tmp_path / "mine") as mine:
        (mine_too := tmp_path / "notes").mkdir()
        (mine_too / "note").touch()
        done = demo(tmp_path / "notes")
        assert done.returncode == 1 and "not the demo's: choose another --path" in done.stderr
        with pytest.raises(SystemExit, match="not the demo's: choose another --path"):
            begin_anew(tmp_path / "mine")
        assert (tmp_path / "mine" / "store").is_dir() and (mine_too / "note").exists()
        (tmp_path / "mine" / MARK).touch()
        with pytest.raises(SystemExit, match="stop that one"):
            begin_anew(tmp_path / "mine")
        assert answers(int(mine.address.rpartition(":")[2]))


def test_the_demo_fills_digits_and_leaves_nothing_running(tmp_path: Path) -> None:
    began = time.monotonic()
    done = demo(tmp_path / "data")
    print(f"the demo took {time.monotonic() - began:.0f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    right = re.search(r"597 missing labels: ([\d.]+)% filled as the held-back truth", done.stdout)
    assert right and float(right[1]) >= 95, done.stdout
    assert re.search(r"filled with '\d' \d+ ms after the insert", done.stdout)
    assert re.search(r'predict → \{"outputs":\["\d"\],"version":\d', done.stdout)
    assert "Next: " in done.stdout.splitlines()[-1]
    until(lambda: not processes_of(tmp_path), what="all processes to end", seconds=20)
