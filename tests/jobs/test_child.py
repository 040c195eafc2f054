"""A child contains whatever user code does, says what it was, and leaves nothing behind."""

import datetime
import os
import tempfile
import threading
import uuid

import bson
import pytest
from bson.binary import Binary
from bson.raw_bson import RawBSONDocument

from superduper.errors import (
    ArtifactRejected,
    ChildDied,
    InvalidInput,
    NotReady,
    TooLarge,
    UserCodeError,
)
from superduper.jobs import launching
from superduper.jobs.channel import ChildError
from superduper.jobs.child import Child
from superduper.jobs.limits import Limits
from tests.jobs.waiting import still_answers


def test_values_come_back_as_they_went(child: Child) -> None:
    value = {
        "text": "grüße",
        "bytes": b"\0\1",
        "vector": Binary(b"\x27\0" + bytes(8), 9),
        "date": datetime.datetime(2026, 1, 2),
        "id": bson.ObjectId(),
        "list": [1, 2.5, None, {"$gt": "x.y"}],
        "int64": 2**62,
    }
    assert child.request({"op": "echo", "value": value}) == {"value": value}


def test_raw_documents_uuids_and_dates_beyond_python_pass(child: Child) -> None:
    raw = RawBSONDocument(bson.encode({"x": 1}))
    assert child.request({"op": "echo", "value": raw}) == {"value": {"x": 1}}
    number = uuid.uuid4()
    assert child.request({"op": "echo", "value": number})["value"].as_uuid() == number
    far = bson.DatetimeMS(2**60)
    assert child.request({"op": "echo", "value": far}) == {"value": far}


def test_a_message_may_be_larger_than_a_document(child: Child) -> None:
    value = os.urandom(20 << 20)
    assert child.request({"op": "echo", "value": value})["value"] == value


def test_events_come_before_the_answer(child: Child) -> None:
    events: list[dict[str, int]] = []
    child.request({"op": "events", "n": 5}, on_event=events.append)
    assert events == [{"step": step} for step in range(5)]
    assert child.request({"op": "events", "n": 5}) == {}


@pytest.mark.parametrize("forks", [True, False])
def test_a_child_knows_nothing_of_its_parent(monkeypatch: pytest.MonkeyPatch, forks: bool) -> None:
    monkeypatch.setattr(launching, "FORKS", forks)
    monkeypatch.setenv("SUPERDUPER_URI", "mongodb://user:secret@host")
    monkeypatch.setenv("MONGODB_URI", "mongodb://user:secret@host")
    with Child("tests.jobs.entries:main") as child:
        facts = child.request({"op": "facts"})
    assert "secret" not in str(facts["environment"])
    assert facts["environment"]["OMP_NUM_THREADS"] == "1"
    assert facts["environment"]["HOME"] == facts["environment"]["TMPDIR"] == facts["folder"]
    assert facts["main"] == []
    heavy = {"torch", "numpy", "pymongo", "pydantic"} & set(facts["modules"])
    assert forks or not heavy, "a fork has what its server was told to import"


@pytest.mark.parametrize(
    ("kind", "type", "text"),
    [
        ("value", "ValueError", "bad row"),
        ("exit", "SystemExit", "3"),
        ("interrupt", "KeyboardInterrupt", "KeyboardInterrupt"),
        ("memory", "MemoryError", "MemoryError"),
        ("unprintable", "Unprintable", "its text cannot be shown"),
        ("lease", "LostLease", "forged"),
        ("refused", "ConnectionRefusedError", "nobody there"),
    ],
)
def test_an_exception_arrives_and_the_child_goes_on(
    child: Child, kind: str, type: str, text: str
) -> None:
    with pytest.raises(UserCodeError, match=f"test child: {type}: .*{text}") as caught:
        child.request({"op": "raise_one", "kind": kind})
    assert isinstance(caught.value, ChildError)
    assert caught.value.type == type and text in caught.value.text
    assert "entries.py" in caught.value.traceback
    assert "channel.py" not in caught.value.traceback
    assert "about to raise" in caught.value.message
    assert still_answers(child)


def test_deep_recursion_is_an_exception(child: Child) -> None:
    with pytest.raises(UserCodeError, match="RecursionError"):
        child.request({"op": "recurse"})
    assert still_answers(child)


def test_a_rejected_artifact_arrives_as_such(child: Child) -> None:
    with pytest.raises(ArtifactRejected, match="signature does not match"):
        child.request({"op": "raise_one", "kind": "rejected"})


def test_an_unknown_operation_and_an_unsendable_answer_are_named(child: Child) -> None:
    with pytest.raises(InvalidInput, match="no operation 'fly'; there are: allocate"):
        child.request({"op": "fly"})
    with pytest.raises(InvalidInput, match="set"):
        child.request({"op": "unsendable"})
    with pytest.raises(InvalidInput, match="set"):
        child.request({"op": "echo", "value": {1}})
    assert still_answers(child)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("exit", "ended with exit code 7"),
        ("kill", r"ended by SIGKILL \(out of memory\? It may use 512 MiB\)"),
        ("segfault", "ended by SIGSEGV"),
        ("abort", "ended by SIGABRT"),
        ("close", "closed its channel"),
        ("garbage", "not a message"),
        ("huge", "2147483647 bytes: from 5 to 536870912 are allowed"),
    ],
)
def test_a_death_is_told_with_its_cause_and_last_words(child: Child, how: str, text: str) -> None:
    with pytest.raises(ChildDied, match=f"'test child' .*{text}") as caught:
        child.request({"op": "die", "how": how}, timeout=30)
    if how != "segfault":  # there faulthandler has the last word: where it happened
        assert "these are my\nlast words" in caught.value.message
    else:
        assert "entries.py" in caught.value.message
    assert not child.alive
    child.start()
    assert still_answers(child)


def test_a_request_to_a_child_that_is_not_there() -> None:
    child = Child("tests.jobs.entries:main", name="absent")
    with pytest.raises(NotReady, match="'absent' is not running"):
        child.request({"op": "echo"})


def test_a_child_for_which_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with pytest.raises(NotReady, match="'homeless' cannot be started: .*/nonexistent"):
        Child("tests.jobs.entries:main", name="homeless").start()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_too_large_for_a_message_is_refused(child: Child) -> None:
    with pytest.raises(TooLarge, match="smaller than 2 GiB"):
        child.request({"op": "echo", "value": bytes(2**31)})
    assert still_answers(child)


def test_an_entry_that_cannot_start_is_told() -> None:
    with (
        Child("tests.jobs.entries:broken", name="broken") as child,
        pytest.raises(ChildDied, match="exit code 1(.|\n)*this entry cannot start"),
    ):
        child.request({"op": "echo"}, timeout=20)


def test_too_much_memory_is_an_exception(child: Child) -> None:
    with pytest.raises(UserCodeError, match="MemoryError"):
        child.request({"op": "allocate", "mb": 1024})
    assert still_answers(child)
    with pytest.raises((UserCodeError, ChildDied), match="MemoryError|ended"):
        child.request({"op": "hoard"}, timeout=60)
    child.start()
    assert still_answers(child)


def test_megabytes_of_output_are_taken_in_and_forgotten(child: Child) -> None:
    assert child.request({"op": "chatter", "mb": 20}, timeout=60) == {"done": True}
    with pytest.raises(ChildDied) as caught:
        child.request({"op": "die", "how": "exit"})
    assert len(caught.value.message) < 3000


def test_threads_may_share_a_child(child: Child) -> None:
    answers: list[bool] = []

    def ask(number: int) -> None:
        for _ in range(50):
            answers.append(child.request({"op": "echo", "value": number}) == {"value": number})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 200


def test_a_large_file_is_refused() -> None:
    limits = Limits(file_mb=1)
    with (
        Child("tests.jobs.entries:main", limits=limits) as child,
        pytest.raises(UserCodeError, match="File too large"),
    ):
        child.request({"op": "write_file", "mb": 2})


def test_processor_time_is_limited() -> None:
    with (
        Child("tests.jobs.entries:main", limits=Limits(cpu_seconds=1)) as child,
        pytest.raises(ChildDied, match="SIGXCPU"),
    ):
        child.request({"op": "hang", "in_c": True}, timeout=30)


def test_torch_works_within_the_limits() -> None:
    pytest.importorskip("torch")
    with Child("tests.jobs.entries:main", limits=Limits(memory_mb=1024)) as child:
        assert child.request({"op": "torch_sum"}, timeout=120) == {"sum": 1e6, "threads": 1}
