"""Versions on trial: a canary answers a share of the requests, a shadow is asked and not heard.

The same request, byte for byte, always falls to the same side. The shadow is asked once the answer
has gone out, and not at all while too many of its own are under way.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, Metric

from superduper.errors import SuperduperError
from superduper.serving.batches import Outcomes, Request
from superduper.serving.model_hosts import ModelHosts
from superduper.serving.trials import Tally, Trial, difference

if TYPE_CHECKING:
    from superduper_server.models import Target

logger = logging.getLogger(__name__)

MOST_SHADOWS = 64
OWNER = "shadow"
_SCALE = 2.0**32


@dataclass(frozen=True, eq=False)
class Rivals:
    """The versions beside a live one, and their shares of its requests (from 0 to 1)."""

    trial: Trial
    canary: "Target | None" = None
    canary_share: float = 0.0
    shadow: "Target | None" = None
    shadow_share: float = 0.0
    tolerance: float = 0.0

    def share(self, live: "Target", body: bytes) -> "Part":
        """What becomes of a request."""
        digest = blake2b(body, digest_size=8).digest()
        canary = self.canary is not None and _is_within(digest[:4], self.canary_share)
        shadow = self.shadow is not None and _is_within(digest[4:], self.shadow_share)
        answers = self.canary if canary and self.canary is not None else live
        return Part(self, answers, "canary" if canary else "live", shadow)


def _is_within(digest: bytes, share: float) -> bool:
    return int.from_bytes(digest) / _SCALE < share


@dataclass(frozen=True, slots=True)
class Part:
    """One request's part in a trial: who answers it, and whether the shadow is asked too."""

    rivals: Rivals
    target: "Target"
    side: str
    is_shadowed: bool


class Shadows:
    """Counts the answers of a trial, and asks shadows."""

    def __init__(self, hosts: ModelHosts, tally: Tally, seconds: float) -> None:
        self._hosts = hosts
        self._tally = tally
        self._seconds = seconds
        self._lock = threading.Lock()
        self._under_way = 0

    def heard(self, part: Part, values: Sequence[Any], result: Outcomes | Exception) -> None:
        """A request of a trial has been answered."""
        failed = isinstance(result, Exception) or any(each.get("error") for each in result)
        ending = "failed" if failed else "answered"
        self._tally.count(part.rivals.trial, f"{part.side}_{ending}")
        if part.is_shadowed and not isinstance(result, Exception):
            self._ask(part.rivals, values, result)

    def _ask(self, rivals: Rivals, values: Sequence[Any], heard: Outcomes) -> None:
        if rivals.shadow is None or not self._begin():
            self._tally.count(rivals.trial, "shadow_dropped")
            return

        def done(result: Outcomes | Exception) -> None:
            with self._lock:
                self._under_way -= 1
            self._compare(rivals, heard, result)

        request = Request(values, time.monotonic() + self._seconds, done, OWNER)
        try:
            self._hosts.put(rivals.shadow.component, request)
        except SuperduperError as error:  # its queue is full, or its host is being closed
            done(error)

    def _begin(self) -> bool:
        with self._lock:
            if self._under_way >= MOST_SHADOWS:
                return False
            self._under_way += 1
        return True

    def _compare(self, rivals: Rivals, heard: Outcomes, result: Outcomes | Exception) -> None:
        if isinstance(result, Exception):
            self._tally.count(rivals.trial, "shadow_failed")
            return
        try:
            apart = difference(heard, result)
        except Exception:  # nobody's answer may depend on this
            logger.exception("answers cannot be compared", extra={"event": "traffic.compare"})
            self._tally.count(rivals.trial, "shadow_failed")
            return
        same = apart <= rivals.tolerance
        self._tally.count(rivals.trial, "shadow_same" if same else "shadow_different", apart)


class TrialFigures:
    """The counts for Prometheus."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[Metric]:
        """The figures, as the library asks for them."""
        answers = CounterMetricFamily(
            "superduper_trial_answers",
            "Answers under a traffic policy: by the live version, a canary, a shadow.",
            labels=("policy", "answer"),
        )
        for (policy, answer), count in self._tally.totals.copy().items():
            answers.add_metric((policy, answer), count)
        yield answers
