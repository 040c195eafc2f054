"""How much of a server one token may take: requests a second, and requests at once."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from superduper.errors import TooManyRequests
from superduper_server.ledger import Ledger, OwnLedger
from superduper_server.limits import Limits
from superduper_server.tokens import Identity


class Shares:
    """What every token takes at the moment; for the event loop's thread only.

    A token that was idle may send as many requests at once as it may in a second. One that has
    limits of its own has those, others have the server's.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        ledger: Ledger | None = None,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._ledger = ledger or OwnLedger()

    @contextmanager
    def taken(self, identity: Identity) -> Iterator[None]:
        """One more request of a token, while it lasts; see `take`."""
        self.take(identity)
        try:
            yield
        finally:
            self.give_back(identity)

    def take(self, identity: Identity) -> None:
        """One more request of a token, until it is given back.

        Raises TooManyRequests if the token has taken its share.
        """
        most = identity.at_once or self._limits.token_at_once
        with self._ledger:
            if self._ledger.held(identity.id) >= most:
                raise TooManyRequests(
                    f"{most} requests of this token are being answered: wait for one"
                )
            self._take_one(identity)
            self._ledger.hold(identity.id, 1)

    def give_back(self, identity: Identity) -> None:
        """The request has ended."""
        self._ledger.hold(identity.id, -1)

    def _take_one(self, identity: Identity) -> None:
        rate = identity.rate or self._limits.token_rate
        now, burst = self._clock(), max(rate, 1.0)
        level, noted_at = self._ledger.note(identity.id) or (burst, now)
        level = min(burst, level + (now - noted_at) * rate)
        is_there = level >= 1
        self._ledger.write(identity.id, level - 1 if is_there else level, now)
        if not is_there:
            raise TooManyRequests(f"this token may send {rate:g} requests a second: slow down")
