"""Where in an object something is: the path that an error message names."""

import functools
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

MAX_STEPS = 100_000


def path_to(parts: Mapping[str, Any], culprit: object) -> str | None:
    """The path to an object inside others, as `MyModel.handle`; None if it is not found."""
    queue: deque[tuple[str, Any]] = deque()
    for name, value in parts.items():
        queue.append((_root(name, value), value))
    seen: set[int] = set()
    steps = 0
    while queue and steps < MAX_STEPS:
        steps += 1
        path, value = queue.popleft()
        if value is culprit:
            return path
        if id(value) not in seen:
            seen.add(id(value))
            queue.extend((path + step, inner) for step, inner in _inside(value))
    return None


def type_name(value: object) -> str:
    """The type of an object with its module, as `_io.TextIOWrapper`."""
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _root(name: str, value: Any) -> str:
    if name != "object":
        return name
    named = value if isinstance(value, type | types.FunctionType) else type(value)
    return str(named.__qualname__)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, str | bytes | int | float | types.ModuleType | types.CodeType):
        return
    if isinstance(value, dict):
        yield from ((f"[{key!r:.40}]", item) for key, item in list(value.items()))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{number}]", item) for number, item in enumerate(value))
    elif isinstance(value, types.FunctionType):
        yield from _inside_function(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield "", value.__func__
    elif isinstance(value, staticmethod | classmethod):
        yield "", value.__func__
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield from ((f".args[{number}]", item) for number, item in enumerate(value.args))
        yield from ((f".{key}", item) for key, item in value.keywords.items())
    elif isinstance(value, type):
        yield from ((f".{key}", item) for key, item in list(vars(value).items()))
        yield from (("", base) for base in value.__bases__ if base is not object)
    else:
        yield from _inside_instance(value)


def _inside_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".{name}", cell.cell_contents
        except ValueError:  # not bound yet
            continue
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield f".{name}", function.__globals__[name]
    yield from ((f".__defaults__[{n}]", item) for n, item in enumerate(function.__defaults__ or ()))
    yield from ((f".{key}", item) for key, item in (function.__kwdefaults__ or {}).items())
    yield from ((f".{key}", item) for key, item in vars(function).items())


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*inner)


def _inside_instance(value: Any) -> Iterator[tuple[str, Any]]:
    fields = getattr(value, "__dict__", None)
    for key, item in list(fields.items()) if isinstance(fields, dict) else ():
        if key in ("_modules", "_parameters", "_buffers") and isinstance(item, dict):
            yield from ((f".{name}", each) for name, each in item.items())
        else:
            yield f".{key}", item
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                yield f".{slot}", getattr(value, slot)
    if type(value).__module__ != "builtins":
        yield "", type(value)
