"""A worker's part in the scans and retries of a collection that another worker leads."""

import contextlib
import logging
import threading
from collections.abc import Iterator

from pymongo.errors import PyMongoError

from superduper.errors import SuperduperError
from superduper.imputations.graph import Graph
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.watching.crew import PUT_OFF_SECONDS, Crew
from superduper.imputations.watching.ranges import Ranges

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0


class Helper(threading.Thread):
    """Walks ranges that are free, for one imputation after another, while this worker leads not."""

    def __init__(self, crew: Crew) -> None:
        super().__init__(name=f"help {crew.collection}", daemon=True)
        self.crew = crew
        self._rest = threading.Event()
        self._ended = threading.Event()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """While this worker leads, its scans are the leader's; what is under way is left off."""
        self._rest.set()
        self.crew.retry_for([])
        try:
            yield
        finally:
            if not self._ended.is_set():
                self._rest.clear()

    def end(self) -> None:
        """End; the places of what is under way are kept."""
        self._ended.set()
        self._rest.set()
        self.join()
        self.crew.stop()

    def run(self) -> None:
        """Help, again and again, until told to end."""
        while not self._ended.wait(POLL_SECONDS):
            try:
                records = self.crew.imputations.find(self.crew.collection)
                self.crew.graph = Graph(records)
                resting = self._rest.is_set()
                self.crew.retry_for([] if resting else [each for each in records if each.filling])
                for record in records:
                    if not self._rest.is_set() and self._is_wanted(record):
                        self._help(record)
            except PyMongoError as error:
                logger.warning("%s is interrupted: %s", self.name, error)
            except SuperduperError as error:  # a model that does not load here, for one
                logger.warning("%s puts off: %s", self.name, error)
                self._ended.wait(PUT_OFF_SECONDS)
            except Exception:  # a boundary: trouble with one collection must not end the worker
                logger.exception("%s failed and begins anew", self.name)
                self._ended.wait(PUT_OFF_SECONDS)

    def _is_wanted(self, record: ImputationRecord) -> bool:
        running = record.filling and record.scan.get("state") == "running"
        return running and bool(Ranges(self.crew.imputations, record).free())

    def _help(self, record: ImputationRecord) -> None:
        filler = self.crew.filler(record)
        # So that no document is blamed for a model that does not run here.
        filler.isolation.make_ready()
        self.crew.scan(record, filler, self._rest).help()
