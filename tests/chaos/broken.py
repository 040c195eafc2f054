"""Workers that break one promise, to see that the harness notices: `--broken NAME`."""

import logging
import sys
from collections.abc import Callable
from typing import Any

from pymongo import UpdateOne

from superduper.imputations import failures, process, work, writing
from superduper.imputations.fill import Fill, fill_path
from superduper.imputations.imputation import Imputations


def _overwriting(*, upsert: bool) -> None:
    def update_of(*fills: Fill, exact: bool = False) -> UpdateOne:
        written: dict[str, Any] = {}
        for fill in fills:
            written |= {fill.target: fill.value, fill_path(fill.target): fill.record}
        return UpdateOne({"_id": fills[0].document_id}, {"$set": written}, upsert=upsert)

    writing.update_of = update_of


def _forgetful() -> None:
    def request_scan(self: Imputations, *_: Any, **__: Any) -> None:
        """What happened while the history was lost is never looked at."""

    Imputations.request_scan = request_scan  # type: ignore[method-assign]


def _stubborn() -> None:
    failures.MAX_ATTEMPTS = process.MAX_ATTEMPTS = 100


BREAKS: dict[str, Callable[[], None]] = {
    "overwrites": lambda: _overwriting(upsert=False),
    "resurrects": lambda: _overwriting(upsert=True),
    "forgets": _forgetful,
    "never gives up": _stubborn,
}


if __name__ == "__main__":
    name, address = " ".join(sys.argv[1:-1]), sys.argv[-1]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    BREAKS[name]()
    work.work(address)
