"""Where the harness runs: an embedded store of its own, a proxy, and workers behind the proxy."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from pymongo.uri_parser import parse_uri

from superduper.connection import Client
from superduper.imputations.imputation import Imputations
from superduper.store.embedded import attach
from superduper.store.folder import Folder
from superduper.store.servers import answers
from tests.chaos.answer import model
from tests.jobs.proxy import Proxy
from tests.waiting import until

LEASE_SECONDS = 3.0
PREDICT_SECONDS = 3.0
STORE_SECONDS = 90.0
OPLOG_ENTRIES = 2_000
FIELDS = ("y", "z", "w", "v", "u")


class Workers:
    """Worker processes in slots; whoever kills one sees to its successor."""

    def __init__(self, address: str, folder: Path, slots: int, module: str) -> None:
        self._module = module
        self._address = address
        self._folder = folder
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * slots
        self._started_at = [0.0] * slots
        self.ended = 0

    def start(self, slot: int) -> None:
        """Start a worker in a slot that is free."""
        if self.processes[slot] is not None:
            return
        self._started_at[slot] = time.monotonic()
        with (self._folder / f"worker{slot}.log").open("ab") as log:
            self.processes[slot] = subprocess.Popen(
                [sys.executable, "-m", *self._module.split(), self._address],
                env={
                    **os.environ,
                    "SUPERDUPER_LEASE_SECONDS": str(LEASE_SECONDS),
                    "SUPERDUPER_PREDICT_TIMEOUT": str(PREDICT_SECONDS),
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def signal(self, slot: int, number: int) -> bool:
        """Send a signal to a worker; False if there is none."""
        process = self.processes[slot]
        if process is None or process.poll() is not None:
            return False
        process.send_signal(number)
        return True

    def kill(self, slot: int) -> bool:
        """kill -9; False if there was nothing to kill."""
        there = self.signal(slot, signal.SIGKILL)
        process, self.processes[slot] = self.processes[slot], None
        if process is not None:
            process.wait(timeout=30)
        return there

    def older_than(self, seconds: float) -> list[int]:
        """The slots whose workers run for so long."""
        latest = time.monotonic() - seconds
        there = [slot for slot, process in enumerate(self.processes) if process is not None]
        return [slot for slot in there if self._started_at[slot] < latest]

    def replace_ended(self) -> None:
        """Start anew what ended by itself, as a supervisor does."""
        for slot, process in enumerate(self.processes):
            if process is not None and process.poll() is not None:
                self.ended += 1
                self.processes[slot] = None
                self.start(slot)


class Place:
    """A store with a live watcher, and what can be done to it."""

    def __init__(
        self, folder: Path, client: Client, proxy: Proxy, module: str, fields: Sequence[str]
    ) -> None:
        self.fields = fields
        self.folder = folder
        self.client = client
        self.proxy = proxy
        self.address = client.address
        options = "directConnection=true&connectTimeoutMS=5000"  # as for a server far away
        through = f"mongodb://127.0.0.1:{proxy.port}/?{options}"
        self.workers = Workers(through, folder, 2, module)
        self.live = 1
        #: Held for each operation of a user, and while the whole collection is changed.
        self.world = threading.Lock()
        self._port = parse_uri(self.address)["nodelist"][0][1]

    def declare(self) -> None:
        """Register a model for each field and let it fill that from x."""
        docs = self.client["chaos"]["docs"]
        for field in self.fields:
            docs.create_model(f"answer_{field}", model(1, field))
            docs.create_watcher(f"fill_{field}", model=f"answer_{field}", key="x", target=field)

    def promote(self, database: Any) -> None:
        """Register the next version of each model and make it live."""
        docs, version = self.client["chaos"]["docs"], self.live + 1
        for field in self.fields:
            made = docs.create_model(f"answer_{field}", model(version, field))
            Imputations(database).activate(
                "docs",
                f"fill_{field}",
                version,
                by="chaos",
                reason="chaos",
                model_version=made["version"],
            )
        self.live += 1

    def kill_store(self) -> None:
        """kill -9 of the store's server; its keeper starts it again on the same port."""
        state = Folder(self.folder / "store").read_state()
        assert state is not None, "the store has no keeper"
        for child in psutil.Process(state.pid).children():
            if str(self._port) in child.cmdline():
                child.kill()
                child.wait(timeout=30)
        until(lambda: answers(self._port), STORE_SECONDS, "the store")


@contextlib.contextmanager
def place(
    module: str = "superduper.imputations.work", fields: Sequence[str] = FIELDS[:1]
) -> Iterator[Place]:
    """A place in a folder of its own; nothing of it is left afterwards.

    `module` is what its workers run, `fields` what they fill.
    """
    with tempfile.TemporaryDirectory(prefix="superduper-chaos-") as name:
        folder = Path(name)
        os.environ["SUPERDUPER_HOME"] = str(folder / "home")
        os.environ["SUPERDUPER_OPLOG_ENTRIES"] = str(OPLOG_ENTRIES)
        attachment = attach(folder / "store")
        client = Client(attachment.address, attachment)
        proxy = Proxy(parse_uri(client.address)["nodelist"][0][1])
        here = Place(folder, client, proxy, module, fields)
        try:
            yield here
        finally:
            for slot in range(len(here.workers.processes)):
                here.workers.kill(slot)
            proxy.close()
            client.close()
            until(lambda: not Folder(folder / "store").has_keeper(), 60, "the keeper's end")
