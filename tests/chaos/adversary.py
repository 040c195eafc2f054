"""The adversary: kills, freezes and robs, evenly over a given time, in an order from a seed."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from pymongo import MongoClient
from pymongo.errors import NetworkTimeout, PyMongoError

from tests.chaos.place import LEASE_SECONDS, OPLOG_ENTRIES, STORE_SECONDS, Place
from tests.chaos.users import OPTIONS, User

TICK_SECONDS = 0.05
PATIENT: dict[str, Any] = {**OPTIONS, "socketTimeoutMS": 30_000}
WARM_SECONDS = 2.0  # a worker that still starts has nothing to lose
BAD_TOKENS: tuple[Any, ...] = (
    None,
    "nonsense",
    {"resume": {"_data": "82ffffffff00000000"}, "collection": None},
    {"resume": {"_data": "not hexadecimal"}, "collection": None},
)


def plan(kills: int, draw: random.Random) -> list[str]:
    """The faults in order: so many kills of workers, and the others in proportion."""
    others = {"freeze": 6, "store": 8, "cut": 6, "stall": 6, "slow": 10, "token": 8}
    faults = ["kill"] * kills
    for kind, share in others.items():
        faults += [kind] * max(1, kills // share)
    draw.shuffle(faults)
    for fifth, kind in enumerate(("drop", "promote", "rename", "promote", "roll")):
        faults.insert((fifth + 1) * len(faults) // 6, kind)
    return faults


class Adversary:
    """Works through a plan of faults."""

    def __init__(
        self, place: Place, users: list[User], *, seed: int, kills: int, seconds: float
    ) -> None:
        self.place = place
        self.users = users
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._faults = plan(kills, self._random)
        self._seconds = seconds
        self._later: list[tuple[float, Callable[[], Any]]] = []
        self._client: MongoClient[dict[str, Any]] = MongoClient(place.address, **PATIENT)
        self._database = self._client["chaos"]

    def run(self) -> None:
        """Do everything, and then make whole what is broken."""
        began = time.monotonic()
        count = len(self._faults)
        with self._client:
            for number, kind in enumerate(self._faults):
                due = began + self._seconds * (number + self._random.random()) / count
                self._tend_until(due)
                getattr(self, f"_{kind}")()
                if kind != "kill":
                    self.counts[kind] += 1
            self._tend_until(began + self._seconds)
            while self._later:
                self._tend_until(time.monotonic() + TICK_SECONDS)

    def _tend_until(self, moment: float) -> None:
        """See to what is due, such as successors of the killed, until then."""
        while True:
            now = time.monotonic()
            due = [each for each in self._later if each[0] <= now]
            self._later = [each for each in self._later if each[0] > now]
            for _, act in due:
                act()
            self.place.workers.replace_ended()
            if now >= moment:
                return
            time.sleep(TICK_SECONDS)

    def _in(self, least: float, most: float, act: Callable[[], Any]) -> None:
        self._later.append((time.monotonic() + self._random.uniform(least, most), act))

    def _slot(self) -> int:
        return self._random.randrange(len(self.place.workers.processes))

    # Faults ----------------------------------------------------------------------------------

    def _kill(self) -> None:
        workers = self.place.workers
        deadline = time.monotonic() + WARM_SECONDS * 3
        while not (grown := workers.older_than(WARM_SECONDS)) and time.monotonic() < deadline:
            self._tend_until(time.monotonic() + TICK_SECONDS)
        slot = self._random.choice(grown or range(len(workers.processes)))
        self.counts["worker kills"] += workers.kill(slot)
        self._in(0.0, 1.0, lambda: workers.start(slot))

    def _freeze(self) -> None:
        slot, workers = self._slot(), self.place.workers
        workers.signal(slot, signal.SIGSTOP)
        seconds = LEASE_SECONDS * self._random.uniform(1.1, 3.0)
        self._in(seconds, seconds, lambda: workers.signal(slot, signal.SIGCONT))

    def _store(self) -> None:
        self.place.kill_store()

    def _cut(self) -> None:
        self.place.proxy.cut()
        self._in(0.2, 1.5, self.place.proxy.mend)

    def _stall(self) -> None:
        self.place.proxy.stall()
        self._in(0.5, 5.0, self.place.proxy.mend)

    def _slow(self) -> None:
        self.place.proxy.slow(0.05)
        self._in(1.0, 3.0, self.place.proxy.mend)

    def _token(self) -> None:
        """Nobody holds the stream while its place is deleted or spoilt."""
        self._kill_all()
        token = self._random.choice(BAD_TOKENS)
        change = {"$unset": {"token": ""}} if token is None else {"$set": {"token": token}}
        self._database["superduper.watchers"].update_one({"_id": "stream:docs"}, change)

    def _kill_all(self) -> None:
        workers = self.place.workers
        for slot in range(len(workers.processes)):
            self.counts["worker kills"] += workers.kill(slot)
            self._in(0.5, 1.0, lambda slot=slot: workers.start(slot))  # type: ignore[misc]

    def _roll(self) -> None:
        """While nobody works, so much happens that the history of it is lost."""
        self._kill_all()
        noise = self._database["noise"]
        self._insist(lambda: noise.insert_many([{} for _ in range(2 * OPLOG_ENTRIES)]))

    def _drop(self) -> None:
        """The collection is dropped; the next insert makes another one of that name."""
        with self.place.world:
            self._insist(lambda: self._database["docs"].drop())
            for user in self.users:
                user.dropped()

    def _rename(self) -> None:
        """The collection is renamed, and gets its name back."""
        names = self._database.list_collection_names
        with self.place.world:
            for old, new in (("docs", "aside"), ("aside", "docs")):
                # An insert that was given up and repeated may have made "docs" again meanwhile.
                self._insist(
                    lambda o=old, n=new: (
                        o not in names() or self._database[o].rename(n, dropTarget=True)
                    )
                )

    def _insist(self, act: Callable[[], Any]) -> None:
        """Do what must be done, as often as the store fails to answer."""
        deadline = time.monotonic() + STORE_SECONDS
        while True:
            try:
                act()
                return
            except NetworkTimeout:
                # The embedded store may hang for good if a collection is renamed while others
                # write to it. What it has not done by its end it does not do later.
                self.place.kill_store()
                self.counts["store hung"] += 1
            except PyMongoError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(TICK_SECONDS)

    def _promote(self) -> None:
        self.place.promote(self._database)
