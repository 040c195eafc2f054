"""What stands in the place of a value that failed; and how a failure stays with its value."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

_MESSAGE_LIMIT = 2_000
_TRACEBACK_LIMIT = 8_000
_HERE = __name__.rpartition(".")[0]

# Not every exception: KeyboardInterrupt and its kind end the process, as they should. A sys.exit in
# a model is the model's failure.
CONTAINED = (Exception, SystemExit)


class WrongRows(ValueError):
    """A model or a batch function gave back another number of rows than it was given."""

    @classmethod
    def of(cls, what: str, got: int, wanted: int) -> "WrongRows":
        """The error that states both numbers."""
        return cls(
            f"{what} returned {got} rows for {wanted} inputs: "
            "it must return one row for each input, in the same order"
        )


@dataclass(frozen=True)
class Failure:
    """A value that failed; `error` has its `type`, `message` and `traceback`."""

    error: dict[str, str]

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """The failure that tells of an exception of user code."""
        return cls(describe_error(error))


def describe_error(error: BaseException) -> dict[str, str]:
    """Type, message and traceback of an exception, the traceback from the user's code on."""
    lines = traceback.format_exception(type(error), error, _users_part(error.__traceback__))
    return {
        "type": type(error).__name__,
        "message": _message(error)[:_MESSAGE_LIMIT],
        "traceback": "".join(lines)[-_TRACEBACK_LIMIT:],
    }


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the code called sys.exit({error.code!r})"
    try:
        return str(error) or type(error).__name__
    except Exception:  # a user's exception class may fail to print itself
        return f"{type(error).__name__} (its message cannot be printed)"


def _users_part(found: TracebackType | None) -> TracebackType | None:
    while found is not None and _is_ours(found):
        found = found.tb_next
    return found


def _is_ours(found: TracebackType) -> bool:
    return str(found.tb_frame.f_globals.get("__name__", "")).startswith(_HERE)


def each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """`function` of each item, a Failure where it raises; failures among the items stay."""
    return [item if isinstance(item, Failure) else _attempt(function, item) for item in items]


def _attempt(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except CONTAINED as error:
        return Failure.of(error)


def contain(function: Callable[[list[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:
    """`function` of all items at once; failures among the items stay and are not given to it.

    If it raises, halves are tried apart, and so on, until only the items that fail alone have
    failed. A wrong number of rows is no single item's fault and fails all.
    """
    alive = [index for index, item in enumerate(items) if not isinstance(item, Failure)]
    results = list(items)
    made = _halving(function, [items[index] for index in alive]) if alive else []
    for index, result in zip(alive, made, strict=True):
        results[index] = result
    return results


def _halving(function: Callable[[list[Any]], list[Any]], items: list[Any]) -> list[Any]:
    try:
        return function(items)
    except WrongRows as error:
        return [Failure.of(error)] * len(items)
    except CONTAINED as error:
        if len(items) == 1:
            return [Failure.of(error)]
    middle = len(items) // 2
    return _halving(function, items[:middle]) + _halving(function, items[middle:])
