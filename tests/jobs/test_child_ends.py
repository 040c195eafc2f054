"""How children end: when they are told to, when they die, and when their parent does."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from superduper.errors import (
    ChildDied,
    TimedOut,
)
from superduper.jobs import process
from superduper.jobs.child import Child
from superduper.jobs.queue import Cancelled
from tests.jobs.waiting import is_gone, still_answers
from tests.waiting import until


@pytest.mark.parametrize("in_c", [False, True])
def test_a_hanging_request_is_ended(child: Child, in_c: bool) -> None:
    child.request({"op": "echo"})
    pid = child.pid
    before = time.monotonic()
    with pytest.raises(TimedOut, match=r"'test child' did not answer within 0\.5 s"):
        child.request({"op": "hang", "in_c": in_c}, timeout=0.5)
    assert time.monotonic() - before < 5
    assert pid is not None and not psutil.pid_exists(pid)


def test_a_child_that_does_not_read_is_ended(child: Child) -> None:
    os.kill(child.pid or 0, signal.SIGSTOP)
    with pytest.raises(TimedOut):
        child.request({"op": "echo", "value": bytes(10 << 20)}, timeout=0.5)
    assert not child.alive


def test_a_request_can_be_cancelled(child: Child) -> None:
    cancel = threading.Event()
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    with pytest.raises(Cancelled):
        child.request({"op": "hang"}, cancel=cancel)
    timer.join()
    assert not child.alive


def test_a_request_can_be_killed_from_another_thread(child: Child) -> None:
    timer = threading.Timer(0.3, child.kill)
    timer.start()
    with pytest.raises(ChildDied, match="SIGKILL"):
        child.request({"op": "hang"})
    timer.join()
    child.start()
    assert still_answers(child)


def test_an_exception_while_taking_an_event_ends_the_child(child: Child) -> None:
    def refuse(event: dict[str, int]) -> None:
        raise KeyError("refused")

    with pytest.raises(KeyError):
        child.request({"op": "events", "n": 3}, on_event=refuse)
    assert not child.alive


def test_what_a_child_started_ends_with_it(child: Child) -> None:
    pids = child.request({"op": "spawn"})["pids"]
    child.stop()
    until(lambda: all(is_gone(pid) for pid in pids), 5)


@pytest.mark.parametrize("op", ["spawn", "fork_and_exit"])
def test_a_death_is_noticed_although_grandchildren_hold_the_channel(child: Child, op: str) -> None:
    child.request({"op": "echo"})
    folder = child.request({"op": "facts"})["folder"]
    before = time.monotonic()
    with pytest.raises(ChildDied, match="exit code 9"):
        child.request({"op": op, "exit": True})
    assert time.monotonic() - before < 3
    assert not marked_with(folder)


def marked_with(folder: str) -> list[int]:
    found = []
    for one in psutil.process_iter():
        try:
            if one.environ().get("HOME") == folder:
                found.append(one.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def test_nothing_is_left_behind(child: Child) -> None:
    folder = Path(child.request({"op": "facts"})["folder"])
    child.request({"op": "write_file", "mb": 1})
    child.stop()
    assert not folder.exists()
    for ending in (Child.stop, Child.kill):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            child.start()
            child.request({"op": "echo"})
            ending(child)
        assert len(os.listdir("/proc/self/fd")) == before
    assert not [one for one in psutil.Process().children() if one.status() == "zombie"]


def test_a_child_outlives_the_thread_that_started_it() -> None:
    child = Child("tests.jobs.entries:main")

    def begin() -> None:
        child.start()
        child.request({"op": "echo"})

    starter = threading.Thread(target=begin)
    starter.start()
    starter.join()
    try:
        assert still_answers(child)
    finally:
        child.stop()


PARENT = """
import os, sys, threading, time
from superduper.jobs.child import Child
child = Child("tests.jobs.entries:main")
child.start()
pids = child.request({"op": "spawn"})["pids"]
print(child.pid, pids[0], child.request({"op": "facts"})["folder"], flush=True)
for thread in range(30):  # that die one after the other when the process is killed
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
if sys.argv[1] == "fork" and os.fork() == 0:
    time.sleep(10)  # a copy of the parent
if sys.argv[1] == "wait":
    child.request({"op": "hang", "in_c": True})
"""


def start_parent(how: str) -> tuple["subprocess.Popen[str]", list[int], Path]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, how], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child, grandchild, folder = parent.stdout.readline().split()
    parent.stdout.close()
    return parent, [int(child), int(grandchild)], Path(folder)


def test_children_die_with_a_killed_parent_and_the_next_one_tidies_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent, pids, folder = start_parent("wait")
    parent.kill()
    parent.wait()
    until(lambda: all(is_gone(pid) for pid in pids), 5)
    assert folder.exists()
    os.utime(folder, (0, 0))
    monkeypatch.setattr(process, "_swept", threading.Lock())
    with Child("tests.jobs.entries:main") as child:
        own = Path(child.request({"op": "facts"})["folder"])
        os.utime(own, (0, 0))
        monkeypatch.setattr(process, "_swept", threading.Lock())
        with Child("tests.jobs.entries:main"):
            assert own.exists()
    assert not folder.exists()
    assert folder.parent == Path(tempfile.gettempdir())


def test_a_fork_of_the_parent_has_no_hold_on_its_children(child: Child) -> None:
    child.request({"op": "echo"})
    copy = os.fork()
    if copy == 0:
        try:
            child.request({"op": "echo"}, timeout=5)
        except ChildDied:
            child.stop()
            os._exit(5)
        os._exit(6)
    assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 5
    assert still_answers(child)


def test_children_die_with_a_killed_parent_of_which_there_is_a_fork() -> None:
    parent, pids, _ = start_parent("fork")
    parent.kill()
    parent.wait()
    until(lambda: all(is_gone(pid) for pid in pids), 5)


def test_a_parent_that_just_ends_takes_its_children_along() -> None:
    parent, pids, folder = start_parent("end")
    assert parent.wait(20) == 0
    until(lambda: all(is_gone(pid) for pid in pids), 5)
    assert not folder.exists()
