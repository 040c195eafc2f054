"""The embedded store: started by whoever comes first, shared, durable, closed by the last."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from superduper.errors import InvalidInput, MissingExtra, NotReady
from superduper.store.embedded import attach
from superduper.store.folder import Folder, Lock
from superduper.store.keeper import Kept, reserve_port
from superduper.store.mongo import connect_mongo, database_errors
from superduper.store.servers import describe_servers, find_server
from tests.waiting import until


def insert(address, value):
    with connect_mongo(address) as client:
        client["shop"]["documents"].insert_one({"_id": value})


def ids(address):
    with connect_mongo(address) as client:
        return {found["_id"] for found in client["shop"]["documents"].find()}


def test_data_outlive_the_last_user(store):
    with attach(store.path) as attachment:
        insert(attachment.address, "kept")
    until(store.is_closed)
    assert Folder(store.path).read_state() is None
    with attach(store.path) as attachment:
        assert ids(attachment.address) == {"kept"}
    until(store.is_closed)


def test_several_programs_at_once_share_one_server(store, program):
    programs = [program() for _ in range(6)]
    addresses = {one.address() for one in programs}
    assert len(addresses) == 1
    assert len(store.keepers()) == 1
    assert len(store.servers()) == 1
    for one in programs[:-1]:
        assert one.leave() == 0
    insert(addresses.pop(), "still open")
    programs[-1].leave()
    until(store.is_closed)


def test_two_attachments_in_one_program_are_two_users(store):
    first = attach(store.path)
    second = attach(store.path)
    first.close()
    first.close()
    assert store.keepers()
    insert(second.address, 1)
    second.close()
    until(store.is_closed)


def test_a_store_that_is_just_closing_is_opened_again(store):
    keepers = set()
    for turn in range(3):
        with attach(store.path) as attachment:
            insert(attachment.address, turn)
            keepers.update(process.pid for process in store.keepers())
        locked = Lock(Folder(store.path).users_lock)
        if turn % 2:  # come back as late as can be: when the keeper has begun to close
            until(lambda lock=locked: not lock.try_shared() or lock.release())
        locked.close()
    with attach(store.path) as attachment:
        assert ids(attachment.address) == {0, 1, 2}
    assert len(keepers) >= 2
    until(store.is_closed)


def test_a_killed_user_is_gone(store, program):
    one = program()
    one.address()
    one.kill()
    until(store.is_closed)


def test_a_killed_server_comes_back_at_its_address(store):
    with attach(store.path) as attachment, connect_mongo(attachment.address) as client:
        documents = client["shop"]["documents"]
        documents.insert_one({"_id": 1})
        (before,) = store.servers()
        before.kill()
        until(lambda: store.servers() not in ([], [before]))
        until(lambda: works(documents))
        assert documents.count_documents({}) == 2
        assert attach_address(store) == attachment.address


def attach_address(store):
    with attach(store.path) as attachment:
        return attachment.address


def test_the_server_dies_with_a_killed_keeper_and_both_come_back(store):
    with attach(store.path) as attachment, connect_mongo(attachment.address) as client:
        documents = client["shop"]["documents"]
        documents.insert_one({"_id": 1})
        (keeper,), (server,) = store.keepers(), store.servers()
        keeper.kill()
        until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
        until(lambda: store.keepers() and store.servers())  # nobody attached anew
        assert until(lambda: attach_address(store) == attachment.address)
        documents.insert_one({"_id": 2})
        assert documents.count_documents({}) == 2
    until(store.is_closed)


def test_after_a_kill_of_everything_stale_files_mislead_nobody(store, program):
    one = program()
    address = one.address()
    insert(address, "before")
    one.kill()
    for process in [*store.keepers(), *store.servers()]:
        process.kill()
    until(store.is_closed)
    assert Folder(store.path).read_state() is not None
    with attach(store.path) as attachment:
        assert ids(attachment.address) == {"before"}
    until(store.is_closed)


def test_a_stale_address_of_another_server_is_not_believed(store, program, tmp_path):
    one = program()
    one.address()
    one.kill()
    for process in [*store.keepers(), *store.servers()]:
        process.kill()
    until(store.is_closed)
    with attach(tmp_path / "other") as other:
        state = Folder(store.path).read_state()
        port = int(other.address.rpartition(":")[2])
        Folder(store.path).write_state(type(state)(other.address, port, 1, state.server))
        assert attach_address(store) != other.address
    until(store.is_closed)


def test_a_terminated_keeper_closes_the_store(store, program):
    one = program()
    one.address()
    (keeper,), (server,) = store.keepers(), store.servers()
    one.process.send_signal(signal.SIGSTOP)  # so that it starts no other keeper
    keeper.terminate()
    until(lambda: not keeper.is_running())
    assert not server.is_running()
    assert Folder(store.path).read_state() is None


def test_nothing_acknowledged_is_lost_when_the_server_is_killed(store):
    acknowledged: list[int] = []
    done = threading.Event()

    def insert_for_ever(address):
        with MongoClient(address) as client:
            number = 0
            while not done.is_set():
                number += 1
                try:
                    client["shop"]["documents"].insert_one({"_id": number})
                except PyMongoError:
                    continue
                acknowledged.append(number)

    with attach(store.path) as attachment:
        writer = threading.Thread(target=insert_for_ever, args=[attachment.address])
        writer.start()
        for _ in range(4):
            goal = len(acknowledged) + 150
            until(lambda goal=goal: len(acknowledged) > goal)
            store.servers()[0].kill()
        goal = len(acknowledged) + 10
        until(lambda: len(acknowledged) > goal)
        done.set()
        writer.join()
        assert len(acknowledged) > 600
        assert set(acknowledged) <= ids(attachment.address)


def test_a_full_disk_is_named_and_loses_nothing(store, small_disk):
    acknowledged = set()
    with attach(store.path) as attachment, connect_mongo(attachment.address) as client:
        documents = client["shop"]["documents"]

        def fill_up():
            for number in range(100):
                documents.insert_one({"_id": number, "x": os.urandom(1_000_000)})
                acknowledged.add(number)

        full = f"disk of the store at {store.path} is full"
        with pytest.raises(NotReady, match=full), database_errors():
            fill_up()
        small_disk()
        until(lambda: works(documents), 60)
        assert acknowledged <= {found["_id"] for found in documents.find({}, {"_id": 1})}
    until(store.is_closed)


def works(documents):
    try:
        return documents.insert_one({}).acknowledged
    except PyMongoError:
        return False


def test_only_loopback_is_served(store):
    with attach(store.path) as attachment:
        port = int(attachment.address.rpartition(":")[2])
        found = [
            connection.laddr
            for process in [*store.keepers(), *store.servers()]
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert [(address.ip, address.port) for address in found] == [("127.0.0.1", port)]


def test_the_folder_is_private(store):
    with attach(store.path):
        assert store.path.stat().st_mode & 0o077 == 0


def test_a_server_that_does_not_start_is_one_clear_error(store):
    folder = Folder(store.path)
    folder.create()
    (folder.data / "WiredTiger").write_text("not a database")
    (folder.data / "WiredTiger.turtle").write_text("not a database")
    started = time.monotonic()
    with pytest.raises(NotReady, match=r"does not start \(secantus\)"):
        attach(store.path)
    assert time.monotonic() - started < 30


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="no store can be kept in .*file/data"):
        attach(tmp_path / "file" / "data")


def test_data_are_not_given_to_another_kind_of_server(store):
    with attach(store.path):
        pass
    with pytest.raises(InvalidInput, match="made by secantus, which mongod cannot read"):
        attach(store.path, server="mongod")


def test_choice_of_server(monkeypatch):
    with pytest.raises(InvalidInput, match="no embedded store 'sqlite': choose auto, mongod"):
        find_server("sqlite")
    assert find_server("secantus").program[0] == sys.executable
    monkeypatch.setenv("SUPERDUPER_STORE", "secantus")
    assert find_server().name == "secantus"
    assert [row["server"] for row in describe_servers() if row["used"]] == ["secantus"]


def test_without_any_server_the_pip_command_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MissingExtra, match=r"pip install 'superduper-imputations\[embedded\]'"):
        find_server()
    assert not any(row["used"] for row in describe_servers())


def test_the_best_server_that_is_here_is_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, expected in (("secantusd-rs", "secantus-rust"), ("mongod", "mongod")):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert find_server().name == expected
        assert str(tmp_path / name) in find_server().command(tmp_path, 1)


def test_nothing_heavy_and_nothing_under_gpl_is_imported():
    code = (
        "import sys, superduper.store.keeper, superduper.store.embedded as embedded;"
        "embedded.find_server('secantus');"
        "print({'torch', 'numpy', 'pymongo', 'pydantic', 'secantus'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_reserved_port_is_free_for_a_server_and_for_nobody_else():
    port, reserved = reserve_port(0)
    with reserved, socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        other, reserved_other = reserve_port(port)
        with reserved_other:
            assert other != port


def kept(folder, code):
    return Kept("child", [sys.executable, "-c", code], folder, {})


def test_a_kept_process_is_started_again(store):
    folder = Folder(store.path)
    folder.create()
    child = kept(folder, "import time; time.sleep(60)")
    assert child.tend()
    assert not child.tend()
    before = child.pid
    psutil.Process(before).kill()
    until(child.tend)
    assert child.pid != before
    child.stop(10)
    assert not child.running


def test_a_kept_process_that_does_not_listen_is_killed(store):
    folder = Folder(store.path)
    folder.create()
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    child = kept(folder, f"{code}; time.sleep(60)")
    child.tend()
    until(lambda: "up" in folder.log_tail("child"))
    child.stop(0.2)
    assert not child.running


def test_a_process_that_ends_at_once_is_started_less_and_less_often(store):
    folder = Folder(store.path)
    folder.create()
    child = kept(folder, "")
    starts = 0
    deadline = time.monotonic() + 3  # that nothing happens more often can only be watched
    while time.monotonic() < deadline:
        starts += child.tend()
        time.sleep(0.005)
    child.stop(1)
    assert 2 <= starts <= 5


def test_a_worker_runs_beside_the_store_once_somebody_wants_one(store, program):
    with attach(store.path):
        assert not store.workers()
        one = program("worker")
        one.address()
        (before,) = until(store.workers)
        before.kill()
        until(lambda: store.workers() not in ([], [before]))
        assert len(store.workers()) == 1
        one.leave()
        assert store.workers()  # it goes with the store
    until(store.is_closed, 40)
    assert not store.workers()
