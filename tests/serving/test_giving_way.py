"""Turns of the interpreter are short while somebody gives way, and as usual after the last."""

import sys
import threading

import pytest

from superduper.serving.giving_way import TURN_SECONDS, giving_way


def test_turns_are_short_until_the_last_has_left() -> None:
    usual, entered, leave = sys.getswitchinterval(), threading.Event(), threading.Event()
    assert usual > TURN_SECONDS

    def stay() -> None:
        with giving_way:
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    assert entered.wait(60)
    with giving_way:
        assert sys.getswitchinterval() == pytest.approx(TURN_SECONDS)
    assert sys.getswitchinterval() == pytest.approx(TURN_SECONDS)
    leave.set()
    thread.join()
    assert sys.getswitchinterval() == pytest.approx(usual)


def test_after_an_error_they_are_as_usual() -> None:
    usual = sys.getswitchinterval()
    with pytest.raises(RuntimeError), giving_way:
        raise RuntimeError
    assert sys.getswitchinterval() == pytest.approx(usual)


def test_shorter_ones_are_left() -> None:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(TURN_SECONDS / 2)
    try:
        with giving_way:
            assert sys.getswitchinterval() == pytest.approx(TURN_SECONDS / 2)
    finally:
        sys.setswitchinterval(usual)
