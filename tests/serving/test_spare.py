"""The spare child: there after a death, taken at the next one, gone when it is not needed."""

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from superduper.errors import ChildDied, UserCodeError
from superduper.serving import spare
from superduper.serving.host import ModelHost
from superduper.serving.spare import Spare
from tests.waiting import until

OpenHost = Callable[..., ModelHost]


def dies(value: Any) -> Any:
    if value == "die":
        os._exit(4)
    return os.getpid()


@pytest.fixture
def host(open_host: OpenHost) -> Iterator[ModelHost]:
    host = open_host(dies)
    yield host
    host.close()


def kill(host: ModelHost) -> None:
    with pytest.raises(ChildDied):
        host.predict(["die"])


def pid_of(host: ModelHost) -> int:
    [outcome] = host.predict([1])
    return int(outcome["value"])


def spare_pids(mine: int) -> set[int]:
    """The children that hold a model, but the one that answers."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children} - {mine}


def test_there_is_none_before_a_death(host: ModelHost) -> None:
    pid_of(host)
    alone = host.memory_mb
    kill(host)
    pid_of(host)
    until(lambda: host.memory_mb > 1.5 * alone, 60, "a spare")


def test_after_a_death_the_next_one_is_there_already(host: ModelHost) -> None:
    first = pid_of(host)
    kill(host)
    second = pid_of(host)
    until(lambda: host._spare.is_ready, 60, "a spare")
    there = spare_pids(second)
    kill(host)
    third = pid_of(host)
    assert third in there
    assert len({first, second, third}) == 3
    until(lambda: host._spare.is_ready, 60, "the next spare")


def test_closing_ends_it(host: ModelHost) -> None:
    pid_of(host)
    kill(host)
    pid = pid_of(host)
    until(lambda: host._spare.is_ready, 60, "a spare")
    memory = host.memory_mb
    assert memory > 0
    host.close()
    assert host.memory_mb == 0
    assert not host._spare.is_ready
    until(lambda: not psutil.pid_exists(pid), 30, "the child's end")


class TestOne:
    """One that is made of nothing."""

    def test_it_is_let_go_when_nobody_needs_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(spare, "KEEP_SECONDS", 0.05)
        ended: list[str] = []
        one = Spare("test", lambda: "made", ended.append)
        one.prepare()
        until(lambda: ended == ["made"])
        assert one.take() is None
        one.prepare()
        until(lambda: ended == ["made", "made"])

    def test_dropped_while_it_is_made_it_ends(self) -> None:
        go, ended = threading.Event(), list[str]()

        def make() -> str:
            assert go.wait(30)
            return "made"

        one = Spare("test", make, ended.append)
        one.prepare()
        one.drop()
        assert ended == []
        go.set()
        until(lambda: ended == ["made"])

    def test_taken_while_it_is_made_it_is_waited_for(self) -> None:
        one = Spare("test", lambda: "made", lambda _: None)
        one.prepare()
        one.prepare()
        assert one.take() == "made"
        assert one.take() is None

    def test_one_that_cannot_be_made_is_not_there(self) -> None:
        def make() -> str:
            raise UserCodeError("no")

        one = Spare("test", make, lambda _: None)
        one.prepare()
        assert one.take() is None
        one.prepare()
        until(lambda: one._making is not None and one._making.over)
        assert not one.is_ready
