"""Which names are allowed: one rule each for components, databases, collections and field paths."""

import re
from collections.abc import Sequence

from superduper.errors import InvalidInput

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
DATABASE = re.compile(r"""[^\x00-\x20/\\."$*<>:|?]{1,63}""")
COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,118}")
PATH_SEGMENT = re.compile(r"[^.$\0][^.\0]{0,119}")
MAX_PATH_SEGMENTS = 8


def check_name(name: str) -> str:
    """A component's or imputation's name: a letter, then letters, digits, `_`, `-`; at most 63."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} is not a valid name: start with a letter, go on with letters, digits, "
            "'_' or '-', at most 63 characters"
        )
    return name


def check_database(name: str) -> str:
    """A database's name, as MongoDB has them on every system. Raises InvalidInput for another."""
    if not DATABASE.fullmatch(name):
        raise InvalidInput(
            f"{name[:80]!r} is not a valid name for a database: at most 63 characters, and no "
            'space and none of / \\ . " $ * < > : | ?'
        )
    return name


def check_collection(name: str) -> str:
    """A collection's name: as MongoDB has them, and none of the system's own."""
    if not COLLECTION.fullmatch(name) or name.startswith(("system.", "superduper.")):
        raise ValueError(f"{name[:80]!r} is not a valid collection name")
    return name


def check_path(path: str) -> str:
    """A dotted path to a field: no empty segment, none that starts with `$`, none named `_fill`."""
    segments = path.split(".")
    if len(segments) > MAX_PATH_SEGMENTS:
        raise ValueError(f"{path[:80]!r} is deeper than {MAX_PATH_SEGMENTS} levels")
    for segment in segments:
        if not PATH_SEGMENT.fullmatch(segment) or segment == "_fill":
            raise ValueError(f"{path[:80]!r} is not a valid field path")
    return path


def check_keys(keys: str | Sequence[str]) -> str | tuple[str, ...]:
    """One field path, or a list of different ones."""
    if isinstance(keys, str):
        return check_path(keys)
    if not keys or len(set(keys)) != len(keys):
        raise ValueError("a list of fields must have at least one field, and each only once")
    return tuple(check_path(key) for key in keys)


def imputation_name(target_key: str | Sequence[str], model_key: str | Sequence[str]) -> str:
    """`<target_key>_from_<model_key>`, with what a name may not have replaced by `_`."""
    text = "_from_".join(
        key if isinstance(key, str) else "_".join(key) for key in (target_key, model_key)
    )
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in text)
    return cleaned.lstrip("_-0123456789")[:63] or "imputation"
