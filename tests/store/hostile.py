"""Pickles that leave a mark when they are read: what a thief of the database would put there."""

import functools
import io
import logging
import operator
import os
import pathlib
import pickle
import pkgutil
import runpy
import shutil
import subprocess
import timeit
import types
import zlib
from collections.abc import Callable
from typing import Any

import dill


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class SetsState:
    """Pickles as an object whose state is set by a function of the thief's."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        return dict, (), {"x": 1}, None, None, functools.partial(exec, self.text)


def call(function: Any, *arguments: Any) -> bytes:
    return pickle.dumps({"object": Calls(function, *arguments)})


class Marshalled:
    def __init__(self, code: types.CodeType) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        import marshal

        return marshal.loads, (marshal.dumps(self.code),)


def in_dill(mark: str) -> bytes:
    def body() -> None:
        open(mark, "w").close()

    buffer = io.BytesIO()
    dill.Pickler(buffer, recurse=True).dump({"object": Calls(operator.call, body)})
    return buffer.getvalue()


def kinds(mark: str) -> dict[str, bytes]:
    """Pickles by kind; all of them make the file when they are read."""
    touch, text = f"touch {mark}", f"open({mark!r}, 'w').close()"
    made: dict[str, Callable[[], bytes]] = {
        "os.system": lambda: call(os.system, touch),
        "GLOBAL": lambda: f"cposix\nsystem\n(S'{touch}'\ntR.".encode(),
        "INST": lambda: f"(S'{touch}'\niposix\nsystem\n.".encode(),
        "OBJ": lambda: f"(cposix\nsystem\nS'{touch}'\no.".encode(),
        "eval": lambda: call(eval, text),
        "exec": lambda: call(exec, text),
        "Popen": lambda: call(subprocess.check_call, ["touch", mark]),
        "resolve_name": lambda: call(
            operator.call, Calls(pkgutil.resolve_name, "os:system"), touch
        ),
        "partial": lambda: call(functools.partial(os.system, touch)),
        "pickle in pickle": lambda: call(pickle.loads, call(os.system, touch)),
        "dill in pickle": lambda: call(dill.loads, call(os.system, touch)),
        "methodcaller": lambda: call(operator.methodcaller("touch"), pathlib.Path(mark)),
        "truncated": lambda: f"cposix\nsystem\n(S'{touch}'\ntR".encode(),
        "popped": lambda: f"cposix\nsystem\n(S'{touch}'\ntR0}}S'object'\nNs.".encode(),
        "second pickle": lambda: pickle.dumps({"object": Calls(pickle.loads, call(exec, text))}),
        "FileHandler": lambda: call(logging.FileHandler, mark),
        "pathlib": lambda: call(pathlib.Path.write_text, pathlib.Path(mark), "x"),
        "shutil": lambda: call(shutil.copyfile, os.__file__, mark),
        "timeit": lambda: call(timeit.timeit, text, "pass", timeit.default_timer, 1),
        "runpy": lambda: call(runpy._run_code, text, {}),
        "compressed": lambda: call(exec, Calls(zlib.decompress, zlib.compress(text.encode()))),
        "bytecode": lambda: call(exec, Marshalled(compile(text, "x", "exec"))),
        "setstate": lambda: pickle.dumps({"object": SetsState(text)}),
        "by dill": lambda: in_dill(mark),
        "open": lambda: call(open, mark, "w"),
    }
    return {name: make() for name, make in made.items()}
