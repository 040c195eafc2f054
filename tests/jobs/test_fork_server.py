"""Children are forks of a server that has imported what is heavy, and else like any other."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from superduper.errors import ChildDied
from superduper.jobs.child import Child
from superduper.jobs.limits import Limits
from tests.jobs.waiting import is_gone
from tests.waiting import until

ENTRY = "tests.jobs.entries:main"


@pytest.fixture
def two() -> Iterator[list[Child]]:
    children = [Child(ENTRY, limits=Limits(memory_mb=2048)) for _ in range(2)]
    for child in children:
        child.start(["torch"])
    yield children
    for child in children:
        child.stop()


def server_of(child: Child) -> psutil.Process:
    parent = psutil.Process(child.pid).parent()
    assert parent is not None
    return parent


def test_what_is_heavy_is_imported_once_for_all(two: list[Child]) -> None:
    for child in two:
        assert "torch" in child.request({"op": "facts"}, timeout=60)["modules"]
        used = psutil.Process(child.pid).cpu_times()
        assert used.user + used.system < 0.5, "importing torch takes more than a second"
    assert server_of(two[0]) == server_of(two[1])


def test_a_fork_runs_in_a_session_and_a_folder_of_its_own(two: list[Child]) -> None:
    folders = [child.request({"op": "facts"}, timeout=60)["folder"] for child in two]
    pids = [child.pid or 0 for child in two]
    assert [os.getsid(pid) for pid in pids] == pids
    assert folders[0] != folders[1]
    for pid, folder in zip(pids, folders, strict=True):
        assert psutil.Process(pid).environ()["HOME"] == folder, "by this a stray one is found"


def test_no_two_forks_draw_the_same_random_numbers(two: list[Child]) -> None:
    drawn = [child.request({"op": "draw"}, timeout=60) for child in two]
    assert drawn[0]["random"] != drawn[1]["random"]
    assert drawn[0]["numpy"] != drawn[1]["numpy"]


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is concealed from the administrator")
def test_nobody_else_looks_into_the_server(two: list[Child]) -> None:
    with pytest.raises(PermissionError):
        os.listdir(f"/proc/{server_of(two[0]).pid}/fd")


def test_a_process_conceals_itself() -> None:
    code = "from superduper.jobs.kernel import *; conceal(); print(libc().prctl(3, 0, 0, 0, 0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", ""), "3 asks whether memory can be looked at"


def test_the_server_stays_one_thread(two: list[Child]) -> None:
    two[0].request({"op": "torch_sum"}, timeout=60)
    assert server_of(two[0]).num_threads() == 1


def test_children_outlive_their_server_and_the_next_child_gets_a_new_one(two: list[Child]) -> None:
    server = server_of(two[0])
    server.send_signal(signal.SIGKILL)
    until(lambda: is_gone(server.pid), 5)
    assert two[0].request({"op": "echo", "value": 1}, timeout=20) == {"value": 1}
    with pytest.raises(ChildDied, match="ended after the process that it was forked from"):
        two[0].request({"op": "die", "how": "exit"}, timeout=20)
    other = two[1].pid
    two[1].stop()
    assert other is not None and is_gone(other)
    two[0].start()
    assert two[0].request({"op": "echo", "value": 2}, timeout=20) == {"value": 2}
    assert server_of(two[0]) != server
