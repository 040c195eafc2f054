"""Under which names the server answers, so that a page in somebody's browser cannot speak to it.

Such a page reaches a private server under a name of its own (DNS rebinding); the Host header says
which, and Origin whose page it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from superduper import settings
from superduper.errors import NotAllowed

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class TrustedHosts:
    """The names that Host and Origin may have; None for any, where every request needs a token."""

    names: frozenset[str] | None
    problem: str

    @classmethod
    def of(cls, *, insecure: bool) -> Self:
        """Loopback only for a server without tokens, else what SUPERDUPER_HOSTS names."""
        if insecure:
            return cls(LOOPBACK, "without tokens the server answers only to loopback")
        given = frozenset(filter(None, settings.get("HOSTS").lower().replace(" ", "").split(",")))
        return cls(given or None, "the server answers to the names in SUPERDUPER_HOSTS only")

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise NotAllowed for another Host, or for a page of another site."""
        if self.names is None:
            return
        if _name_in(headers.get("host", "")) not in self.names:
            raise NotAllowed(f"{self.problem}, and the Host header has another name")
        origin = headers.get("origin")
        if origin and _name_in(origin.partition("://")[2]) not in self.names:
            raise NotAllowed(f"{self.problem}, and to no page of another site")


def _name_in(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()
