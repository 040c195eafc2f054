"""What user code in a child cannot reach: files, processes, the network, sharp tools."""

import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from superduper.errors import ChildDied, TimedOut, UserCodeError
from superduper.jobs import landlock, launching, seccomp
from superduper.jobs.child import Child
from superduper.jobs.descendants import count_descendants
from superduper.jobs.kernel import MACHINE
from superduper.jobs.limits import BOUNDARIES, Limits

ENTRY = "tests.jobs.escapes:main"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these boundaries are Linux's")
with_landlock = pytest.mark.skipif(
    landlock.version() < landlock.SCOPES_SINCE, reason="needs Landlock 6 (Linux 6.12)"
)


@pytest.fixture(params=["forked", "executed"])
def child(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    monkeypatch.setattr(launching, "FORKS", request.param == "forked")
    limits = Limits(memory_mb=512, processes=40)
    with Child(ENTRY, limits=limits, name="prisoner") as child:
        yield child


def held(child: Child) -> dict[str, bool]:
    """Which boundaries the child says it has."""
    child.request({"op": "folder"}, timeout=30)
    assert child.held is not None and child.held.keys() == BOUNDARIES.keys()
    return child.held


def refused(child: Child, op: str, **message: Any) -> str | None:
    answer: str | None = child.request({"op": op, **message}, timeout=30)["refused"]
    return answer


@with_landlock
def test_files_can_be_changed_in_its_own_folders_only(child: Child, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    for op in ("write", "remove", "move"):
        assert refused(child, op, path=str(mine)) in ("EACCES", "EXDEV"), op
        assert refused(child, op, path=str(tmp_path / "new")) is not None, op
    assert mine.read_text() == "precious" and os.listdir(tmp_path) == ["mine"]
    assert refused(child, "write", path="inside") is None
    assert refused(child, "write", path="/dev/null") is None
    assert refused(child, "write", path="/dev/forged") == "EACCES"
    assert refused(child, "write", path="/proc/thread-self/comm") is None  # as CUDA does
    assert refused(child, "write", path=f"/proc/{os.getpid()}/comm") == "EACCES"
    assert held(child)["files"]


def test_temporary_files_are_its_own_although_it_was_loaded_elsewhere() -> None:
    child = Child(ENTRY)
    child.start(preload=(ENTRY.partition(":")[0],))
    with child:
        mine = child.request({"op": "folder"})["folder"]
        assert child.request({"op": "temporary"})["folder"].startswith(f"{mine}/")


@with_landlock
def test_more_folders_can_be_granted(tmp_path: Path) -> None:
    granted = tmp_path / "granted"
    granted.mkdir()
    limits = Limits(writable=(str(granted), str(tmp_path / "absent")))
    with Child(ENTRY, limits=limits) as child:
        assert refused(child, "write", path=str(granted / "new")) is None
        assert refused(child, "write", path=str(tmp_path / "new")) == "EACCES"


@with_landlock
def test_others_are_neither_signalled_nor_read(child: Child) -> None:
    me = os.getpid()
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        assert refused(child, "kill", pid=me, signal=number) == "EPERM"
    with Child(ENTRY) as sibling:
        sibling.request({"op": "privileges"})
        assert refused(child, "kill", pid=sibling.pid, signal=9) == "EPERM"
        assert refused(child, "read", path=f"/proc/{sibling.pid}/environ") == "EACCES"
    for secret in ("environ", "mem", "auxv"):
        assert refused(child, "read", path=f"/proc/{me}/{secret}") in ("EACCES", "EPERM"), secret


@pytest.mark.skipif(MACHINE not in seccomp.MACHINES, reason="its calls are not known")
def test_nothing_about_a_file_is_changed(child: Child, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    before = mine.stat()
    assert child.request({"op": "alter", "path": str(mine)}) == {
        "mode": None,
        **dict.fromkeys(("owner", "attributes"), "EPERM"),
    }
    after = mine.stat()
    assert (after.st_mode, after.st_ctime_ns) == (before.st_mode, before.st_ctime_ns)
    assert os.listxattr(mine) == []
    assert refused(child, "copy") is None, "what copies its own files goes on"
    assert child.request({"op": "touch"}) == {"made": True}


@pytest.mark.skipif(MACHINE not in seccomp.MACHINES, reason="its calls are not known")
def test_nobody_else_is_given_limits(child: Child) -> None:
    before = resource.prlimit(os.getpid(), resource.RLIMIT_CPU)
    assert refused(child, "limit_another", pid=os.getpid()) == "EPERM"
    assert refused(child, "limit_another", pid=os.getppid()) == "EPERM"
    assert resource.prlimit(os.getpid(), resource.RLIMIT_CPU) == before


@pytest.mark.skipif(MACHINE not in seccomp.MACHINES, reason="its calls are not known")
def test_no_socket_reaches_another_machine_whatever_namespaces_there_are(child: Child) -> None:
    local = {"AF_UNIX", "AF_NETLINK"}
    for name in ("AF_INET", "AF_INET6", "AF_PACKET", "AF_VSOCK", "AF_ALG", *local):
        family = getattr(socket, name)
        answer = refused(child, "make_socket", family=family)
        assert (answer is None) if name in local else (answer == "EACCES"), name
    assert held(child)["network"] and held(child)["tcp"]


@pytest.mark.skipif(MACHINE not in seccomp.MACHINES, reason="its calls are not known")
@pytest.mark.parametrize("network", [False, True])
def test_the_network_is_cut_off_where_that_is_possible(child: Child, network: bool) -> None:
    child.stop()
    with (
        Child(child.entry, limits=Limits(network=network)) as asked,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        port = server.getsockname()[1]
        tcp, udp = (refused(asked, "connect", port=port, udp=udp) for udp in (False, True))
    found = asked.held or {}
    cut_off = ("ENETUNREACH", "EACCES")
    assert found["network"] == (udp in cut_off) and found["tcp"] == (tcp in cut_off)
    assert found["network"] == (not network)


def test_its_processes_may_talk_to_each_other_and_to_nobody_else(child: Child) -> None:
    child.stop()
    with (
        Child(child.entry, limits=Limits(loopback=True)) as asked,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        assert asked.request({"op": "talk"}) == {"heard": "a word"}
        outside = refused(asked, "connect", port=server.getsockname()[1], udp=False)
    if (asked.held or {})["network"]:  # where the system gives it a network of its own
        assert outside == "ECONNREFUSED"


@pytest.mark.skipif(MACHINE not in seccomp.MACHINES, reason="its calls are not known")
def test_calls_that_it_has_no_need_of_are_refused(child: Child) -> None:
    column = seccomp.MACHINES[MACHINE][0]
    for name, numbers in seccomp.REFUSED.items():
        if (number := numbers[column]) is not None:
            assert refused(child, "call", number=number) == "EPERM", name
    assert refused(child, "new_users") == "EPERM"
    assert refused(child, "call", number=435) == "ENOSYS", "clone3"
    if MACHINE == "x86_64":
        assert refused(child, "call", number=seccomp.X32_CALLS + 1) == "ENOSYS"
    assert held(child)["calls"]


def test_no_privilege_is_left_and_no_limit_can_be_raised(child: Child) -> None:
    assert child.request({"op": "privileges"}) == {
        **dict.fromkeys(("CapEff", "CapPrm"), "0" * 16),
        "NoNewPrivs": "1",
        "Seccomp": "2" if MACHINE in seccomp.MACHINES else "0",
    }
    assert refused(child, "raise_limit") == "EPERM"


def test_a_fork_bomb_is_put_out(child: Child) -> None:
    before = time.monotonic()
    folder = child.request({"op": "folder"})["folder"]
    if held(child)["processes"]:  # the kernel lets it grow no further; it is ended with the rest
        with pytest.raises(TimedOut):
            child.request({"op": "bomb"}, timeout=1)
    else:
        with pytest.raises(ChildDied, match="started more than 40 processes"):
            child.request({"op": "bomb"}, timeout=30)
    assert time.monotonic() - before < 10
    assert not left_over(folder)
    child.start()
    assert refused(child, "write", path="inside") is None


def left_over(folder: str) -> list[str]:
    """The processes that still name the folder of a child in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if folder.encode() in (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:  # it has ended
            continue
    return found


def test_too_many_processes_are_refused_or_end_it(child: Child) -> None:
    told = "BlockingIOError" if held(child)["processes"] else "started more than 40 processes"
    with pytest.raises((ChildDied, UserCodeError), match=told):
        child.request({"op": "multiply", "n": 60, "seconds": 5.0}, timeout=30)


def test_some_processes_are_nothing_to_object_to(child: Child) -> None:
    assert child.request({"op": "multiply", "n": 30, "seconds": 0.5}) == {"started": 30}
    assert count_descendants(child.pid or 0, 100) == 30
    assert count_descendants(child.pid or 0, 10) > 10
