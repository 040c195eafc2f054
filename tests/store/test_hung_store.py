"""A server of the embedded store that hangs is started anew; one that is busy is not."""

import os
import signal
import subprocess
import sys

from pymongo import MongoClient

from superduper.store.embedded import attach
from superduper.store.folder import Folder
from superduper.store.keeper import HUNG_CPU_SECONDS, Silence, is_held_up, processor_seconds
from tests.waiting import until

IMPATIENT = """
import sys
from superduper.store import keeper
keeper.HUNG_SECONDS = 2.0
sys.exit(keeper.main(sys.argv[1], sys.argv[2]))
"""


def test_a_server_that_hangs_is_started_anew(store):
    attach(store.path).close()
    until(store.is_closed)
    server = Folder(store.path).made_by()
    command = [sys.executable, "-P", "-c", IMPATIENT, str(store.path), server]
    subprocess.run([*command, "-m", "superduper.store.keeper"], check=True, timeout=60)
    with attach(store.path) as attachment, MongoClient(attachment.address) as client:
        client["shop"]["documents"].insert_one({"_id": "acknowledged"})
        [hung] = store.servers()
        hung.send_signal(signal.SIGSTOP)
        until(lambda: hung.pid not in {each.pid for each in store.servers()}, what="its end")
        until(lambda: client["shop"]["documents"].find_one({}, max_time_ms=20_000))
        assert client["shop"]["documents"].distinct("_id") == ["acknowledged"]
    until(store.is_closed)


def test_a_busy_server_does_not_hang():
    now = 0.0
    silence = Silence(lambda: now)

    def seconds(*, silent, used):
        nonlocal now
        now += 10.0
        return silence.seconds(silent=silent, used=used)

    assert [seconds(silent=True, used=1.0) for _ in range(3)] == [0.0, 10.0, 20.0]
    assert seconds(silent=True, used=1.0 + HUNG_CPU_SECONDS) == 0.0, "it has done something"
    assert seconds(silent=True, used=1.1 + HUNG_CPU_SECONDS) == 10.0
    assert seconds(silent=False, used=2.0) == 0.0, "it has answered"
    assert seconds(silent=True, used=2.0) == 0.0
    assert seconds(silent=True, used=0.0) == 0.0, "it is another process"


def test_who_waits_for_a_processor_is_held_up():
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        until(lambda: is_held_up(spinning.pid))
        spinning.send_signal(signal.SIGSTOP)
        until(lambda: not is_held_up(spinning.pid))
    finally:
        spinning.kill()
        spinning.wait()


def test_processor_time_is_told():
    before = processor_seconds(os.getpid())
    until(lambda: processor_seconds(os.getpid()) > before + 0.1)
