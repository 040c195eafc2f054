"""Following a collection: nothing missed, tokens that move, and history that is lost honestly."""

import time
from datetime import datetime

import pytest
from bson import Binary, ObjectId
from pymongo import UpdateOne
from pymongo.errors import PyMongoError

from superduper.store.changes import MANY_UPDATES, Changes, HistoryLost
from superduper.store.embedded import attach
from superduper.store.mongo import connect_mongo
from tests.waiting import until


@pytest.fixture
def documents(database):
    """A collection with one document."""
    database["documents"].insert_one({"_id": "there", "x": [1, 2], "d": {"e": 1}})
    return database["documents"]


def drain(changes, seconds=5.0):
    """All that comes until the stream is quiet."""
    found = changes.next_batch(100, int(seconds * 1000))
    while more := changes.next_batch(100, 1):
        found += more
    return found


def test_kinds_ids_and_touched_fields(documents):
    with Changes(documents) as changes:
        before = time.time() * 1000
        documents.insert_one({"_id": 1, "x": 1})
        documents.update_one({"_id": "there"}, {"$set": {"x.0": 5, "d.e": 2, "n": 1}})
        documents.update_one({"_id": "there"}, {"$unset": {"d": 1}, "$set": {"m": 1}})
        replacing = [{"$replaceWith": {"$mergeObjects": ["$$ROOT", {"y": 1, "_fill": {"y": {}}}]}}]
        documents.update_one({"_id": "there"}, replacing)
        documents.replace_one({"_id": 1}, {"a": 1})
        documents.delete_one({"_id": 1})
        found = drain(changes)
    assert [(change.id, change.kind, change.touched) for change in found] == [
        (1, "insert", None),
        ("there", "update", {"x.0", "d.e", "n"}),
        ("there", "update", {"d", "m"}),
        ("there", "update", {"y", "_fill"}),
        (1, "replace", None),
        (1, "delete", None),
    ]
    assert all(before - 2000 < change.cluster_time_ms < before + 10_000 for change in found)


def test_values_are_told(documents):
    with Changes(documents) as changes:
        documents.update_one({"_id": "there"}, {"$set": {"y": "mine", "d.e": [1]}})
        documents.update_one({"_id": "there"}, {"$unset": {"y": ""}})
        found = drain(changes)
    assert [change.values for change in found] == [{"y": "mine", "d.e": [1]}, {}]
    assert [change.touched for change in found] == [{"y", "d.e"}, {"y"}]


def test_updates_that_are_too_much_for_one_reply_are_told_by_their_names(documents):
    large, count = "m" * (1 << 20), 52
    documents.insert_many({"_id": number} for number in range(count))
    with Changes(documents) as changes:
        updates = [UpdateOne({"_id": number}, {"$set": {"y": large}}) for number in range(count)]
        documents.bulk_write([*updates, UpdateOne({"_id": 0}, {"$set": {"z": 1}})])
        found = drain(changes)
    assert [change.id for change in found] == [*range(count), 0]
    assert {change.touched for change in found[:-1]} == {frozenset({"y"})}
    assert all(not change.values for change in found[:-1])
    assert found[-1].values == {"z": 1}


def test_ids_of_every_kind(documents):
    ids = [1, 2.5, "a", ObjectId(), b"bytes", Binary(b"b", 5), {"a": 1, "b": [1]}, None]
    ids += [datetime(2026, 1, 1), True, 2**40]
    with Changes(documents) as changes:
        documents.insert_many({"_id": value} for value in ids)
        assert [change.id for change in drain(changes)] == ids


def test_other_collections_are_not_seen(documents, database):
    with Changes(documents) as changes:
        database["other"].insert_one({})
        documents.insert_one({"_id": 1})
        assert [change.id for change in drain(changes)] == [1]


def test_a_batch_is_no_larger_than_asked_and_returns_at_once_when_full(documents):
    with Changes(documents) as changes:
        documents.insert_many({"_id": number} for number in range(25))
        started = time.monotonic()
        sizes = [len(changes.next_batch(10, 60_000)) for _ in range(2)]
        assert time.monotonic() - started < 20
        assert sizes == [10, 10]
        assert [change.id for change in changes.next_batch(10, 60_000)] == list(range(20, 25))
        assert time.monotonic() - started < 20


def test_an_empty_stream_is_waited_for(documents):
    with Changes(documents) as changes:
        started = time.monotonic()
        assert changes.next_batch(10, 300) == []
        assert 0.2 < time.monotonic() - started < 5


def test_the_token_is_of_the_batch_returned_so_far(documents):
    with Changes(documents) as changes:
        documents.insert_many({"_id": number} for number in range(20))
        first = changes.next_batch(7, 5000)
        token = changes.token
        changes.next_batch(7, 5000)
    with Changes(documents, token) as changes:
        rest = drain(changes)
    assert [change.id for change in first + rest] == list(range(20))


def test_there_is_a_token_before_anything_happens(documents):
    with Changes(documents) as changes:
        token = changes.token
    documents.insert_one({"_id": 1})
    with Changes(documents, token) as changes:
        assert [change.id for change in drain(changes)] == [1]


def test_a_token_can_be_kept_in_the_database(documents, database):
    with Changes(documents) as changes:
        database["tokens"].insert_one({"_id": 1, "token": changes.token})
    documents.insert_one({"_id": 1})
    kept = database["tokens"].find_one({})["token"]
    with Changes(documents, kept) as changes:
        assert [change.id for change in drain(changes)] == [1]


def test_the_token_moves_while_the_collection_is_quiet(documents, database):
    with Changes(documents) as changes:
        before = changes.token
        database["other"].insert_one({})
        changes.next_batch(10, 200)
        assert changes.token != before


def test_a_collection_that_does_not_exist_yet(database):
    with Changes(database["later"]) as changes:
        token = changes.token
        database["later"].insert_one({"_id": 1})
        assert [change.id for change in drain(changes)] == [1]
    with Changes(database["later"], token) as changes:
        assert [change.id for change in drain(changes)] == [1]


def test_a_large_update_is_a_small_change(documents):
    with Changes(documents) as changes:
        for letter in "abc":
            documents.update_one(
                {"_id": "there"}, {"$set": {letter: b"." * 7_000_000}}, upsert=True
            )
            documents.update_one({"_id": "there"}, {"$unset": {letter: 1}})
        assert [change.touched for change in drain(changes)] == [
            {letter} for letter in "abc" for _ in range(2)
        ]


@pytest.mark.parametrize("how", ["drop", "rename", "dropDatabase", "replaced by another"])
def test_the_end_of_the_collection_is_lost_history(documents, database, how):
    with Changes(documents) as changes:
        documents.insert_one({"_id": 1})
        token = changes.token
        _end(documents, database, how)
        with pytest.raises(HistoryLost, match="documents"):
            for _ in range(10):
                changes.next_batch(10, 200)
        with pytest.raises(HistoryLost):
            changes.next_batch(10, 10)
    documents.insert_one({"_id": 2})
    with pytest.raises(HistoryLost), Changes(documents, token) as changes:
        for _ in range(10):
            changes.next_batch(10, 100)


def _end(documents, database, how):
    if how == "drop":
        documents.drop()
    elif how == "rename":
        documents.rename("elsewhere")
    elif how == "dropDatabase":
        database.client.drop_database(database.name)
    else:
        database["other"].insert_one({"_id": 1})
        database["other"].rename("documents", dropTarget=True)


def test_a_token_of_another_collection_of_that_name(documents):
    with Changes(documents) as changes:
        token = changes.token
    documents.drop()
    documents.insert_one({"_id": 1})
    with pytest.raises(HistoryLost, match="another collection that was named documents"):
        Changes(documents, token)


def test_a_token_of_another_cluster(documents, tmp_path):
    with attach(tmp_path / "data") as other, connect_mongo(other.address) as client:
        elsewhere = client[documents.database.name]["documents"]
        elsewhere.insert_one({"_id": 1})
        with Changes(elsewhere) as changes:
            token = changes.token
    with pytest.raises(HistoryLost):
        Changes(documents, token)


@pytest.mark.parametrize(
    "resume",
    [None, 5, "82", {}, {"x": 1}, {"_data": 5}, {"_data": ""}, {"_data": "zz"}, {"_data": "82AB"}],
)
def test_a_corrupted_token(documents, resume):
    with Changes(documents) as changes:
        good = changes.token
    if resume == {}:
        resume = {"_data": good["resume"]["_data"][:-6]}
    with pytest.raises(HistoryLost):
        Changes(documents, {**good, "resume": resume})
    with pytest.raises(HistoryLost):
        Changes(documents, {})


def test_history_that_was_cut_off(secantus):
    with connect_mongo(secantus("--oplog-max-entries", "500")) as client:
        documents = client["shop"]["documents"]
        documents.insert_one({"_id": "there"})
        with Changes(documents) as changes, Changes(documents) as quiet:
            token = changes.token
            for start in range(0, 3000, 500):
                client["shop"]["noise"].insert_many({"_id": start + n} for n in range(500))
                quiet.next_batch(10, 1)
            kept = quiet.token
        documents.insert_one({"_id": 1})
        with pytest.raises(HistoryLost):
            Changes(documents, token)
        with Changes(documents, kept) as changes:  # this one has moved on in time
            assert [change.id for change in drain(changes)] == [1]


def test_a_stream_that_is_overtaken_by_the_cut_says_so(secantus, monkeypatch):
    monkeypatch.setattr("superduper.store.changes.BEHIND_SECONDS", 0.0)
    with connect_mongo(secantus("--oplog-max-entries", "500")) as client:
        documents = client["shop"]["documents"]
        documents.insert_one({"_id": "there"})
        with Changes(documents) as changes:
            documents.insert_one({"_id": "missed"})
            for start in range(0, 3000, 500):
                client["shop"]["noise"].insert_many({"_id": start + n} for n in range(500))
            documents.insert_one({"_id": "last"})
            with pytest.raises(HistoryLost):
                changes.next_batch(10, 1000)


def test_a_stream_that_is_behind_but_whole_goes_on(documents, monkeypatch):
    monkeypatch.setattr("superduper.store.changes.BEHIND_SECONDS", 0.0)
    with Changes(documents) as changes:
        token = changes.token
        documents.insert_many({"_id": number} for number in range(30))
        found = changes.next_batch(7, 1000) + changes.next_batch(7, 1000)
        assert [change.id for change in found] == list(range(14))
    with Changes(documents, token) as changes:
        assert len(drain(changes)) == 30


def test_nothing_is_missed_where_many_updates_and_others_take_turns(documents):
    """Many updates in a row come in another form; the stream is opened anew for that, and back."""
    many = range(MANY_UPDATES + 8)
    documents.insert_many({"_id": number} for number in many)
    done, found = [], []

    def read_up():
        until(lambda: found.extend(changes.next_batch(100, 200)) or len(found) >= len(done))

    with Changes(documents) as changes:
        for turn in range(3):
            documents.bulk_write(
                [UpdateOne({"_id": number}, {"$set": {"y": turn}}) for number in many]
            )
            done += [(number, "update", {"y"}, {"y": turn}) for number in many]
            read_up()
            documents.update_one({"_id": turn}, {"$unset": {"y": ""}, "$set": {"z": turn}})
            done += [(turn, "update", {"y", "z"}, {"z": turn})]
            read_up()
            documents.insert_one({"_id": f"new {turn}", "large": "l" * 100_000})
            documents.replace_one({"_id": f"new {turn}"}, {"y": 1})
            documents.delete_one({"_id": f"new {turn}"})
            done += [(f"new {turn}", kind, None, {}) for kind in ("insert", "replace", "delete")]
            read_up()
    assert [(each.id, each.kind, each.touched, each.values) for each in found] == done


def test_a_token_of_many_updates_is_good_for_a_new_stream(documents):
    many = range(3 * MANY_UPDATES)
    documents.insert_many({"_id": number} for number in many)
    with Changes(documents) as changes:
        for start in (0, MANY_UPDATES, 2 * MANY_UPDATES):
            documents.update_many(
                {"_id": {"$gte": start, "$lt": start + MANY_UPDATES}}, {"$set": {"y": 1}}
            )
            found = drain(changes) if start < 2 * MANY_UPDATES else changes.next_batch(5, 1000)
        token = changes.token
    with Changes(documents, token) as changes:
        found += drain(changes)
    assert sorted(each.id for each in found) == list(many[2 * MANY_UPDATES :])


def test_a_restart_of_the_server_misses_nothing(store):
    with attach(store.path) as attachment, connect_mongo(attachment.address) as client:
        documents = client["shop"]["documents"]
        documents.insert_one({"_id": "there"})
        with Changes(documents) as changes:
            documents.insert_one({"_id": 1})
            (server,) = store.servers()
            server.kill()
            documents.insert_one({"_id": 2})
            found = []
            until(lambda: found.extend(_patient(changes)) or len(found) == 2)
    assert [change.id for change in found] == [1, 2]


def _patient(changes):
    """A batch, or none while the server is away."""
    try:
        return changes.next_batch(10, 200)
    except PyMongoError:
        return []
