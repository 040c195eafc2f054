"""The three picklers that an object may be sealed with, each with its tensors apart.

plain       for objects without code of the user's own: needs no dill to be read, fits any Python
dill        with `recurse`, or a function from a script would lose its module's globals
cloudpickle where dill fails, as for an Enum, and for modules beside the script, taken by value
"""

import functools
import io
import pickle
import sys
import threading
import types
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from superduper.fields.modules import is_local, local_modules, referenced
from superduper.fields.storages import Storages

PROTOCOL = 5
DEFINITION = "superduper.definition"

_OPEN_IT = "open it when it is needed, not before"
_OMIT = "make it when it is needed, or leave it out in __getstate__"
_GIVEN = "a model is given values and returns values; it has no access to the database"
_REFUSED: dict[str, str] = {
    "_io.FileIO": _OPEN_IT,
    "_io.TextIOWrapper": _OPEN_IT,
    "_io.BufferedReader": _OPEN_IT,
    "_io.BufferedWriter": _OPEN_IT,
    "_io.BufferedRandom": _OPEN_IT,
    "_thread.lock": _OMIT,
    "_thread.RLock": _OMIT,
    "_socket.socket": _OPEN_IT,
    "socket.socket": _OPEN_IT,
    "sqlite3.Connection": _OPEN_IT,
    "mmap.mmap": _OPEN_IT,
    "builtins.generator": "keep a list, or a function that makes the generator",
    "builtins.coroutine": _OMIT,
    "builtins.async_generator": _OMIT,
    "pymongo.synchronous.mongo_client.MongoClient": _GIVEN,
    "pymongo.synchronous.database.Database": _GIVEN,
    "pymongo.synchronous.collection.Collection": _GIVEN,
    "pymongo.asynchronous.mongo_client.AsyncMongoClient": _GIVEN,
    "superduper.connection.Client": _GIVEN,
    "superduper.collection.Collection": _GIVEN,
}
"""Types that must not be sealed although dill would take some of them, and what to do instead."""


class Refused(Exception):
    """An object holds something that cannot be sealed."""

    def __init__(self, value: object, hint: str) -> None:
        super().__init__(hint)
        self.value = value
        self.hint = hint


@dataclass(frozen=True)
class Pickled:
    """A pickle, the storages that it refers to, and the user's classes and functions likewise."""

    code: bytes
    format: str
    storages: frozenset[str]
    definitions: tuple[Any, ...] = ()


class _Apart:
    """What all picklers do: split off tensors, refuse what must not be sealed."""

    storages: Storages
    last: object = None

    def begin(self, storages: Storages) -> None:
        self.storages = storages
        self.used: set[str] = set()
        self.definitions: dict[int, Any] = {}
        self._hints: dict[type, str | None] = {}

    def persistent_id(self, value: Any) -> Any:
        self.last = value
        kind = type(value)
        if kind not in self._hints:
            self._hints[kind] = _REFUSED.get(f"{kind.__module__}.{kind.__qualname__}")
        hint = self._hints[kind]
        if hint is not None and not _is_standard_stream(value):
            raise Refused(value, hint)
        mark = self.storages.name_of(value)
        if mark is not None:
            self.used.add(mark[1])
        return mark


def _is_standard_stream(value: object) -> bool:
    return any(value is stream for stream in (sys.stdin, sys.stdout, sys.stderr))


def _reduce_cached_property(value: Any) -> Any:
    # Before Python 3.12 it holds a lock of its own, made anew by its constructor.
    return functools.cached_property, (value.func,), {"attrname": value.attrname}


# Plain -----------------------------------------------------------------------------------------


class _Plain(_Apart, pickle.Pickler):
    """Code by name: what is installed by its module, what is the user's by its own name."""

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, type | types.FunctionType) and is_local(str(value.__module__)):
            self.definitions.setdefault(id(value), value)
            return DEFINITION, value.__qualname__
        return super().persistent_id(value)


def plain(parts: Any, storages: Storages) -> Pickled | None:
    """The parts with code by name only; None where that cannot be."""
    buffer = io.BytesIO()
    pickler = _Plain(buffer, PROTOCOL)
    pickler.begin(storages)
    try:
        pickler.dump(parts)
    except Refused as error:
        raise error
    except Exception:  # lambdas, closures: the other picklers are for these, and tell what is wrong
        return None
    code = buffer.getvalue()
    modules = referenced(code)
    if any(is_local(name) or name.partition(".")[0] in ("dill", "cloudpickle") for name in modules):
        return None
    return Pickled(code, "pickle", frozenset(pickler.used), tuple(pickler.definitions.values()))


# By value --------------------------------------------------------------------------------------

_lock = threading.Lock()  # both libraries keep what is set below for the whole process


class Unpicklable(Exception):
    """No pickler takes an object; `value` is what they stopped at."""

    def __init__(self, value: object, reason: Exception) -> None:
        super().__init__(str(reason))
        self.value = value


def by_value(parts: Any, storages: Storages) -> Pickled:
    """The parts with the user's code inside: by dill, else by cloudpickle.

    Raises Refused, or Unpicklable with what cloudpickle stopped at.
    """
    with _lock:
        found = _dill(parts, storages)
        return _cloudpickle(parts, storages) if found is None else found


def _dill(parts: Any, storages: Storages) -> Pickled | None:
    import dill

    class Pickler(_Apart, dill.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if type(value) is functools.cached_property:
                return _reduce_cached_property(value)
            if type(value) in (set, frozenset) and all(type(item) is str for item in value):
                return type(value), (sorted(value),)  # or else the order differs in each process
            return NotImplemented

    buffer = io.BytesIO()
    pickler = Pickler(buffer, protocol=PROTOCOL, byref=False, fmode=0, recurse=True)
    pickler.begin(storages)
    try:
        with warnings.catch_warnings(), _ordered_globals():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", dill.PicklingWarning)  # "Cannot locate reference to ..."
            pickler.dump(parts)
    except Refused as error:
        raise error
    except Exception:  # cloudpickle takes some of what dill does not, and tells what is wrong
        return None
    if any(map(is_local, referenced(buffer.getvalue()))):
        return None
    return Pickled(buffer.getvalue(), "dill", frozenset(pickler.used))


@contextmanager
def _ordered_globals() -> Any:
    """Have dill write a function's globals by name: their order would differ in each process."""
    import dill.detect

    given: Callable[..., dict[str, Any]] = dill.detect.globalvars

    def ordered(*arguments: Any, **options: Any) -> dict[str, Any]:
        return dict(sorted(given(*arguments, **options).items()))

    dill.detect.globalvars = ordered
    try:
        yield
    finally:
        dill.detect.globalvars = given


def _cloudpickle(parts: Any, storages: Storages) -> Pickled:
    import cloudpickle

    class Pickler(_Apart, cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if type(value) is functools.cached_property:
                return _reduce_cached_property(value)
            return _without_tracker(value, super().reducer_override(value))

    buffer = io.BytesIO()
    pickler = Pickler(buffer, PROTOCOL)
    pickler.begin(storages)
    known = cloudpickle.list_registry_pickle_by_value()
    modules = [module for module in local_modules() if module.__name__ not in known]
    registered = []
    try:
        for module in modules:
            if sys.modules.get(module.__name__) is not None:
                cloudpickle.register_pickle_by_value(module)
                registered.append(module)
        pickler.dump(parts)
    except Refused as error:
        raise error
    except Exception as error:
        raise Unpicklable(pickler.last, error) from error
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)
    return Pickled(buffer.getvalue(), "cloudpickle", frozenset(pickler.used))


def _without_tracker(value: Any, reduced: Any) -> Any:
    """Leave out the random number that cloudpickle gives to each class of a process."""
    from cloudpickle import cloudpickle

    if not isinstance(value, type) or not isinstance(reduced, tuple):
        return reduced
    tracker = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(value)
    if tracker is None:
        return reduced
    arguments = tuple(None if part is tracker else part for part in reduced[1])
    return (reduced[0], arguments, *reduced[2:])
