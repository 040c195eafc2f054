"""Sealed objects that do harm when they are loaded harm their own process only, and it is told."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from superduper.errors import ChildDied, SuperduperError, TimedOut, UserCodeError
from superduper.serving import loading
from superduper.serving.host import ModelHost

OpenHost = Callable[..., ModelHost]


class Does:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("thing", "kind", "told"),
    [
        (Does(os._exit, 7), ChildDied, "ended with exit code 7"),
        (Does(ctypes.string_at, 0), ChildDied, "SIGSEGV"),
        (Does(os.abort), ChildDied, "SIGABRT"),
        (Does(os.kill, 0, signal.SIGKILL), ChildDied, "SIGKILL"),
        (Does(sys.exit, 3), UserCodeError, "SystemExit: 3"),
        (Does(bytearray, 1 << 40), UserCodeError, "MemoryError"),
    ],
    ids=["exit", "null pointer", "abort", "kills its group", "sys.exit", "a tebibyte"],
)
def test_it_is_contained(
    open_host: OpenHost, thing: Any, kind: type[SuperduperError], told: str
) -> None:
    harmful = open_host(thing)
    with pytest.raises(kind, match=told):
        harmful.predict([1])
    assert open_host(abs).predict([-1])[0]["value"] == 1


def test_one_that_hangs_is_ended(open_host: OpenHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LOAD_SECONDS", 2.0)
    hanging = open_host(Does(time.sleep, 600))
    with pytest.raises(TimedOut, match="did not answer within 2 s and was ended"):
        hanging.predict([1])
