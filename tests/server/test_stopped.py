"""A process of a server that is stopped, not killed: the others go on, and it is replaced."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from superduper.errors import NotReady
from superduper_server.limits import Limits
from superduper_server.shared_ledger import SharedLedger, make_file
from superduper_server.shares import Shares
from superduper_server.tokens import Identity
from tests.server.two_processes import two
from tests.waiting import until

KEEPS_THE_LOCK = """
import os, signal, sys
from superduper_server.shared_ledger import SharedLedger
with SharedLedger(int(sys.argv[1]), 1, 2):
    print("has it", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""
SOMEBODY = Identity("somebody", "reader")


@pytest.fixture
def file() -> Iterator[int]:
    file = make_file(2)
    yield file
    os.close(file)


def test_nobody_waits_long_for_the_lock_of_the_limits(file: int) -> None:
    ledger = SharedLedger(file, 0, 2)
    shares = Shares(Limits(), ledger=ledger)
    stopped = subprocess.Popen(
        [sys.executable, "-c", KEEPS_THE_LOCK, str(file)], pass_fds=[file], stdout=subprocess.PIPE
    )
    try:
        assert stopped.stdout is not None and stopped.stdout.readline() == b"has it\n"
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(NotReady, match="try again"):
                shares.take(SOMEBODY)
        assert time.monotonic() - began < 5, "they wait once, not each time"
    finally:
        stopped.kill()
        stopped.wait()
        stopped.stdout.close()  # type: ignore[union-attr]
    shares.take(SOMEBODY)
    assert ledger.held(SOMEBODY.id) == 1


def test_one_that_answers_nothing_is_replaced(
    store_uri: str, database: Database[Any], tmp_path: Path
) -> None:
    with two(store_uri, database, tmp_path / "log") as served:
        before = {each.pid for each in served.processes()}
        stopped = served.processes()[0]
        stopped.send_signal(signal.SIGSTOP)
        until(lambda: stopped.pid not in {each.pid for each in served.processes()})
        until(lambda: len(served.processes()) == 2, what="another one")
        assert len({each.pid for each in served.processes()} - before) == 1
        for client in served.both():
            assert client.get("/v1/status").status_code == 200
        assert "does not answer and is ended" in served.server.log()
