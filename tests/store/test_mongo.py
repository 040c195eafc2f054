"""Connecting to MongoDB: clear errors, soon, without secrets."""

import os
import signal
import socket
import time
import uuid

import psutil
import pytest
from pymongo import InsertOne, MongoClient, UpdateOne
from pymongo.errors import OperationFailure

from superduper.errors import (
    AlreadyExists,
    InvalidInput,
    NotAllowed,
    NotFound,
    NotReady,
    SuperduperError,
    TooLarge,
    Unauthorized,
)
from superduper.store import mongo
from superduper.store.embedded import attach
from superduper.store.logs import redact
from superduper.store.mongo import (
    connect_mongo,
    database_errors,
    require_replica_set,
    server_now_ms,
    translated,
)
from tests.waiting import until


@pytest.fixture
def free_port():
    """A loopback port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


def test_writes_wait_for_the_majority(store_uri):
    with connect_mongo(store_uri) as client:
        assert client.write_concern.document["w"] == "majority"
        require_replica_set(client)


def test_timeouts_in_the_address_win(store_uri):
    with connect_mongo(f"{store_uri}/?socketTimeoutMS=1234&connectTimeoutMS=4321") as client:
        assert client.options.pool_options.socket_timeout == 1.234
        assert client.options.pool_options.connect_timeout == 4.321


@pytest.mark.parametrize(
    ("host", "seconds"), [("127.0.0.1", 30.0), ("localhost", 30.0), ("h", 5.0)]
)
def test_who_is_silent_on_this_machine_is_busy(host, seconds):
    """An operation is not broken off because the store has no time for a sign of life."""
    options = mongo._options(f"mongodb://me:secret@{host}:27017/?replicaSet=rs0")
    with MongoClient(host, connect=False, **options) as client:
        assert client.options.pool_options.connect_timeout == seconds
        assert client.options.pool_options.socket_timeout == 60.0


def test_nobody_at_the_address(free_port):
    started = time.monotonic()
    with pytest.raises(NotReady) as caught:
        connect_mongo(f"mongodb://me:secret@127.0.0.1:{free_port}/shop")
    assert time.monotonic() - started < 8
    assert f"mongodb://me:***@127.0.0.1:{free_port}/shop" in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "address",
    ["mongodb://", "mongodb://h:port", "mongodb://u:p@ss@h", "mongodb://u:p/w@h"],
)
def test_an_address_that_is_none(address):
    with pytest.raises(InvalidInput, match="the address"):
        connect_mongo(address)


def test_a_standalone_server_is_told_how_to_become_a_replica_set(secantus):
    with connect_mongo(secantus("--standalone")) as client, pytest.raises(NotReady) as caught:
        require_replica_set(client)
    for step in ("standalone", "--replSet rs0", "rs.initiate()", "connect again"):
        assert step in caught.value.message


def test_a_wrong_password(secantus):
    address = secantus("--auth").replace("//", "//me:secret@")
    with pytest.raises(Unauthorized) as caught:
        connect_mongo(address)
    assert "me:***@" in caught.value.message
    assert "secret" not in caught.value.message


def test_a_database_that_dies_gives_an_error_within_seconds(secantus):
    address = secantus()
    with connect_mongo(address) as client, connect_mongo(address) as other:
        client["shop"]["documents"].insert_one({})
        port = int(address.rpartition(":")[2])
        os.kill(_listener(port), signal.SIGKILL)
        for act in (
            lambda: client["shop"]["documents"].insert_one({}),
            lambda: other["shop"]["documents"].find_one(),
        ):
            started = time.monotonic()
            with pytest.raises(NotReady), database_errors():
                act()
            assert time.monotonic() - started < 12


def test_a_database_that_is_silent_does_not_hang(secantus):
    address = secantus()
    with connect_mongo(f"{address}/?socketTimeoutMS=1000") as client:
        process = psutil.Process(_listener(int(address.rpartition(":")[2])))
        process.suspend()
        until(lambda: process.status() == psutil.STATUS_STOPPED)
        try:
            with pytest.raises(NotReady, match="try again|does not answer"), database_errors():
                client["shop"]["documents"].find_one()
        finally:
            process.resume()


def _listener(port):
    for process in psutil.process_iter(["cmdline"]):
        if str(port) in (process.info["cmdline"] or []):
            return process.pid
    raise AssertionError(f"nobody serves {port}")


def test_a_restarted_store_is_found_again(tmp_path):
    with attach(tmp_path / "data") as attachment, connect_mongo(attachment.address) as client:
        client["shop"]["documents"].insert_one({"_id": 1})
        os.kill(_listener(int(attachment.address.rpartition(":")[2])), signal.SIGKILL)
        assert client["shop"]["documents"].count_documents({}) == 1


def test_the_servers_clock(database):
    before = time.time() * 1000
    assert before - 1000 < server_now_ms(database) < time.time() * 1000 + 1000


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("mongodb://h:1/db", "mongodb://h:1/db"),
        ("mongodb://me@h/db", "mongodb://me@h/db"),
        ("mongodb://me:pw@h1,h2/db?w=1", "mongodb://me:***@h1,h2/db?w=1"),
        ("mongodb+srv://me:p%40w@h/db", "mongodb+srv://me:***@h/db"),
        ("mongodb://me:p/w@x@h/db", "mongodb://me:***@h/db"),
        (
            "mongodb://h/?proxyPassword=pw&tlsCertificateKeyFilePassword=pw&w=1",
            "mongodb://h/?proxyPassword=***&tlsCertificateKeyFilePassword=***&w=1",
        ),
    ],
)
def test_passwords_are_not_shown(uri, shown):
    assert redact(uri) == shown


class Thing:
    """No document can hold it."""


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda c: c.insert_one({"x": b"." * 17_000_000}), TooLarge, "16 MB"),
        (lambda c: c.insert_one({"_id": 1}) and c.insert_one({"_id": 1}), AlreadyExists, "_id"),
        (lambda c: c.insert_many([{"_id": 1}, {"_id": 1}]), AlreadyExists, "write 1 of the batch"),
        (lambda c: c.insert_one({"x": Thing()}), InvalidInput, "cannot be stored"),
        (lambda c: c.insert_one({"x": 2**70}), InvalidInput, "8-byte ints"),
        (lambda c: c.insert_one({1: 1}), InvalidInput, "cannot be stored"),
        (lambda c: c.insert_one({"x": "\ud800"}), InvalidInput, "cannot be stored"),
        (lambda c: c.find_one({"x": {"$nonsense": 1}}), InvalidInput, "nonsense"),
        (lambda c: c.find_one({"x": {"$in": 1}}), InvalidInput, "in"),
        (lambda c: c.update_one({}, {"$nonsense": {"x": 1}}), InvalidInput, "nonsense"),
        (lambda c: c.database["a$b\0"], InvalidInput, "."),
        (lambda c: c.bulk_write([]), InvalidInput, "."),
        (
            lambda c: c.bulk_write([InsertOne({"_id": 1}), UpdateOne({}, {"$set": {"_id": 2}})]),
            InvalidInput,
            "write 1 of the batch.*_id.*1 were done",
        ),
        (lambda c: c.rename("other"), NotFound, "."),
    ],
)
def test_the_drivers_errors_become_ours(database, act, error, text):
    with pytest.raises(error, match=text) as caught, database_errors():
        act(database["documents"])
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (18, Unauthorized),
        (13, NotAllowed),
        (14031, NotReady),
        (11600, NotReady),
        (8, NotReady),
        (17419, TooLarge),
        (2, InvalidInput),
        (None, InvalidInput),
    ],
)
def test_each_kind_of_refusal_has_its_class(code, error):
    assert type(translated(OperationFailure("no", code))) is error


def test_a_transient_label_means_try_again():
    details = {"errmsg": "busy", "errorLabels": ["RetryableWriteError"]}
    assert type(translated(OperationFailure("busy", 2, details))) is NotReady


def test_other_errors_pass_untouched():
    with pytest.raises(OverflowError, match="mine"), database_errors():
        raise OverflowError("mine")
    with pytest.raises(SuperduperError, match="ours"), database_errors():
        raise NotFound("ours")


def test_plain_clients_can_use_the_address(store_uri):
    name = f"test_{uuid.uuid4().hex[:12]}"
    with MongoClient(store_uri) as client:
        client[name]["documents"].insert_one({"_id": 1})
        assert client[name]["documents"].count_documents({}) == 1
        client.drop_database(name)
