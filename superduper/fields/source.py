"""The source text of a user's classes and functions, with all that they need from their module.

The text can be read, compared, and run by another version of Python, for which the sealed bytecode
is of no use. It is complete only if every name in it could be explained; then it stands alone.
"""

import __future__

import ast
import builtins
import functools
import importlib
import inspect
import linecache
import math
import symtable
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from superduper.fields.modules import is_local

MAX_CHARACTERS = 1 << 20
MAX_VALUE = 10_000
FUTURE = "from __future__ import annotations"

Definition = type | types.FunctionType


@dataclass(frozen=True)
class Source:
    """A text, and whether running it alone makes everything that it was collected for."""

    text: str
    complete: bool


def source_of(definitions: Iterable[Any]) -> Source | None:
    """The source of classes and functions and of what they use; None where there is none."""
    collected = _Collector()
    for definition in definitions:
        collected.add(definition)
    text = collected.text()
    if not text or len(text) > MAX_CHARACTERS:
        return None
    return Source(text, not collected.missing)


def definitions_in(parts: Mapping[str, Any]) -> list[Any]:
    """The user's classes and functions that the parts of a component plainly are."""
    found: list[Any] = []
    for value in parts.values():
        value = getattr(value, "__func__", value)
        while isinstance(value, functools.partial):
            value = value.func
        definition = value if _is_definition(value) else type(value)
        if is_local(str(definition.__module__)) and definition not in found:
            found.append(definition)
    return found


def _is_definition(value: object) -> TypeGuard[Definition]:
    return isinstance(value, type | types.FunctionType)


class _Collector:
    """One namespace that grows: imports, values and definitions, each after what it needs."""

    def __init__(self) -> None:
        self.missing: set[str] = set()
        self._imports: set[str] = set()
        self._blocks: list[str] = []
        self._bound: dict[str, Any] = {}
        self._later: list[tuple[str, Any]] = []
        self._future: set[bool] = set()

    def text(self) -> str:
        """Everything collected, as one module."""
        if len(self._future) > 1:  # annotations mean two things in modules put together
            self.missing.add(FUTURE)
        first = [FUTURE] if True in self._future else []
        head = "\n".join([*first, *sorted(self._imports)])
        return "\n\n\n".join(part for part in (head, *self._blocks) if part) + "\n" * bool(
            head or self._blocks
        )

    def add(self, definition: Any) -> None:
        """A class or function, with all it needs."""
        outer = _outer(definition)
        self._define(outer)
        if outer is None:  # for people to read only
            text = _text_of(definition)
            self._blocks += [text] if text is not None and text not in self._blocks else []
        while self._later:
            name, value = self._later.pop(0)
            self._bind(name, value)

    def _define(self, definition: Definition | None) -> None:
        if definition is None:  # made inside a function: no text makes it again
            self.missing.add("<locals>")
            return
        name = definition.__name__
        if not self._take(name, definition):
            return
        node = _node_of(definition)
        if node is None:
            self.missing.add(name)
            return
        tree, text = node
        names = _globals_of(definition)
        deferred = _defers_annotations(definition)
        self._future.add(deferred)
        now, later = _names_in(tree, text, deferred)
        for needed in now:
            if needed in names and needed != name:
                self._bind(needed, names[needed])
        self._blocks.append(text)
        self._later += [(each, names[each]) for each in later if each in names]
        self._imports |= {f"import {dotted}" for dotted in _submodules(tree, names)}

    def _take(self, name: str, value: Any) -> bool:
        """Whether a name is to be bound now; one name for two things cannot be told in one text."""
        if name in self._bound:
            if self._bound[name] is not value:
                self.missing.add(name)
            return False
        self._bound[name] = value
        return True

    def _bind(self, name: str, value: Any) -> None:
        if _is_definition(value) and is_local(str(value.__module__)):
            self._define(_outer(value))
            if name != value.__name__ and self._take(name, value):
                self._blocks.append(f"{name} = {value.__qualname__}")
        elif self._take(name, value):
            self._explain(name, value)

    def _explain(self, name: str, value: Any) -> None:
        if isinstance(value, types.ModuleType):
            self._import_module(name, value)
        elif _is_importable(value):
            module, own = value.__module__, value.__name__
            self._imports.add(f"from {module} import {own}" + (f" as {name}" * (name != own)))
        elif _is_literal(value):
            self._blocks.append(f"{name} = {_written(value)}")
        elif getattr(builtins, name, None) is not value:
            self.missing.add(name)

    def _import_module(self, name: str, module: types.ModuleType) -> None:
        whole = module.__name__
        if is_local(whole) or sys.modules.get(whole) is not module:
            self.missing.add(name)
        elif name == whole:
            self._imports.add(f"import {whole}")
        else:
            self._imports.add(f"import {whole} as {name}")


def _defers_annotations(definition: Definition) -> bool:
    return _globals_of(definition).get("annotations") is __future__.annotations


def _outer(definition: Definition) -> Definition | None:
    """The definition at the top of its module that holds this one; None if a function does."""
    names = definition.__qualname__.split(".")
    if names == [definition.__name__]:
        return definition if definition.__name__.isidentifier() else None
    found = _globals_of(definition).get(names[0])
    return found if isinstance(found, type) and found.__name__ == names[0] else None


def _globals_of(definition: Definition) -> Mapping[str, Any]:
    if isinstance(definition, types.FunctionType):
        found: Any = inspect.unwrap(definition)
        return getattr(found, "__globals__", {})
    return vars(sys.modules.get(definition.__module__, builtins))


def _is_importable(value: Any) -> bool:
    """Whether `from module import name` gives this very object, in any process."""
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str) or not name.isidentifier():
        return False
    if is_local(module):
        return False
    try:
        return getattr(importlib.import_module(module), name, None) is value
    except ImportError:
        return False


def _is_literal(value: Any) -> bool:
    """Whether the text of a value makes an equal one."""
    if isinstance(value, float | complex) and type(value) in (float, complex):
        return math.isfinite(abs(value))
    if value is None or type(value) in (bool, int, str, bytes):
        return not isinstance(value, str | bytes) or len(value) <= MAX_VALUE
    if type(value) in (list, tuple, set, frozenset):
        return type(value) is not frozenset and _are_literals(value)
    return type(value) is dict and _are_literals([*value.keys(), *value.values()])


def _are_literals(values: Any) -> bool:
    return len(values) <= MAX_VALUE and all(map(_is_literal, values))


def _written(value: Any) -> str:
    """A literal as text that is the same in every process, whatever the order of its sets."""
    match value:
        case {}:
            pairs = (f"{_written(key)}: {_written(item)}" for key, item in value.items())
            return "{" + ", ".join(pairs) + "}"
        case list():
            return "[" + ", ".join(map(_written, value)) + "]"
        case tuple():
            return "(" + ", ".join(map(_written, value)) + ("," * (len(value) == 1)) + ")"
        case set():
            return "{" + ", ".join(sorted(map(_written, value))) + "}" if value else "set()"
    return repr(value)


# Reading --------------------------------------------------------------------------------------


def _node_of(definition: Definition) -> tuple[ast.AST, str] | None:
    """The syntax tree and the text of a definition, if the text still is what is running."""
    text = _text_of(definition)
    if text is None or not all(map(_is_unchanged, _codes_of(definition))):
        return None
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    return (tree.body[0], text) if len(tree.body) == 1 else None


def _text_of(definition: Definition) -> str | None:
    if isinstance(definition, type):
        found = _class_text(definition)
        if found is not None:
            return found
    try:
        return textwrap.dedent(inspect.getsource(definition)).rstrip()
    except (OSError, TypeError, SyntaxError, IndentationError):  # typed at a prompt, or C code
        return None


def _class_text(definition: type) -> str | None:
    """The text of a class in a notebook's cell, which `inspect` finds only for functions."""
    for code in _codes_of(definition):
        lines = linecache.getlines(code.co_filename)
        try:
            tree = ast.parse("".join(lines))
        except (SyntaxError, ValueError):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == definition.__name__:
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                end = node.end_lineno or first
                if first <= code.co_firstlineno <= end:
                    return "".join(lines[first - 1 : end]).rstrip()
    return None


def _codes_of(definition: Definition) -> list[types.CodeType]:
    """The bytecode of a function, or of the methods that the text of a class holds."""
    if isinstance(definition, type):
        found = [_running(attribute) for attribute in vars(definition).values()]
        prefix = f"{definition.__qualname__}."
        return [code for code in found if code is not None and code.co_qualname.startswith(prefix)]
    running = _running(definition)
    return [] if running is None else [running]


def _running(attribute: Any) -> types.CodeType | None:
    """The bytecode of a function, method or property, decorators apart."""
    for inner in ("__func__", "fget", "func"):
        attribute = getattr(attribute, inner, attribute)
    found = getattr(inspect.unwrap(attribute), "__code__", None) if callable(attribute) else None
    return found if isinstance(found, types.CodeType) else None


def _is_unchanged(running: types.CodeType) -> bool:
    """Whether a file still compiles to the bytecode that runs: it may have been edited since."""
    text = "".join(linecache.getlines(running.co_filename))
    compiled = _compiled(text).get((running.co_qualname, running.co_firstlineno))
    return compiled is not None and _same(compiled, running)


@functools.lru_cache(maxsize=16)
def _compiled(text: str) -> dict[tuple[str, int], types.CodeType]:
    """Every piece of bytecode in a text, by its name and first line."""
    try:
        todo = [compile(text, "<source>", "exec", dont_inherit=True)]
    except (SyntaxError, ValueError):
        return {}
    found = {}
    while todo:
        code = todo.pop()
        found[code.co_qualname, code.co_firstlineno] = code
        todo += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return found


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, types.CodeType) or not isinstance(other, types.CodeType):
        return type(one) is type(other) and bool(one == other)
    parts = ("co_code", "co_names", "co_varnames", "co_freevars")
    return (
        all(getattr(one, part) == getattr(other, part) for part in parts)
        and len(one.co_consts) == len(other.co_consts)
        and all(map(_same, one.co_consts, other.co_consts))
    )


# Names ----------------------------------------------------------------------------------------


def _names_in(tree: ast.AST, text: str, deferred: bool) -> tuple[list[str], list[str]]:
    """Names that a definition uses when it is made, and those it uses when it runs."""
    now: dict[str, None] = {}
    later: dict[str, None] = {}

    def visit(node: ast.AST, target: dict[str, None]) -> None:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            target[node.id] = None
        for field, child in _children(node):
            if field != "body" or not isinstance(node, _FUNCTIONS):
                skipped = deferred and field in ("annotation", "returns")
                visit(child, later if skipped else target)

    visit(tree, now)
    later |= dict.fromkeys(_used_globals(symtable.symtable(text, "<source>", "exec")))
    return list(now), [name for name in later if name not in now]


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _used_globals(table: symtable.SymbolTable) -> Iterator[str]:
    if isinstance(table, symtable.Function):
        names = (each.get_name() for each in table.get_symbols() if each.is_global())
        yield from sorted(names)
    for inner in table.get_children():
        yield from _used_globals(inner)


def _children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield field, child


def _submodules(tree: ast.AST, names: Mapping[str, Any]) -> Iterator[str]:
    """Modules inside packages that are reached by their whole name, as `xml.etree.ElementTree`."""
    for node in ast.walk(tree):
        dotted = _dotted(node)
        if dotted is None or "." not in dotted:
            continue
        first, _, rest = dotted.partition(".")
        if isinstance(names.get(first), types.ModuleType) and names[first].__name__ == first:
            module = sys.modules.get(dotted)
            if isinstance(module, types.ModuleType) and rest and not is_local(dotted):
                yield dotted


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        outer = _dotted(node.value)
        return outer and f"{outer}.{node.attr}"
    return None
