"""Many clients at once against a real server: slow ones beside honest ones, and a crowd."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from typing import Any

DRIPS = (
    (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", b"a"),
    (
        b"POST /v1/tokens HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100000\r\n\r\n",
        b" ",
    ),
    (b"", b""),
)


class Bad:
    """A client that sends one byte a second, and comes back when it is hung up on."""

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        self._begun, self._drip = DRIPS[number % len(DRIPS)]
        self._source = f"127.0.1.{1 + number % 200}"
        self.borne: list[float] = []

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            with contextlib.suppress(OSError):
                await self._once()
            await asyncio.sleep(0.2)

    async def _once(self) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._port, local_addr=(self._source, 0)
        )
        began = time.monotonic()
        try:
            writer.write(self._begun)
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        if not await reader.read(65536):
                            return
                writer.write(self._drip)
        finally:
            self.borne.append(time.monotonic() - began)
            writer.close()


class Honest:
    """A client that asks one thing after the other on one connection, and notes the times."""

    def __init__(self, port: int, request: bytes, number: int, pause: float = 0.0) -> None:
        self._port = port
        self._request = request
        self._source = f"127.0.2.{1 + number % 200}"
        self._pause = pause
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.cut = 0

    async def run(self) -> None:
        """Go on until cancelled; a connection that was closed is opened again."""
        while True:
            try:
                await self._connection()
            except (OSError, asyncio.IncompleteReadError):
                self.cut += 1
                await asyncio.sleep(0.05)

    async def _connection(self) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._port, local_addr=(self._source, 0)
        )
        try:
            closes = False
            while not closes:
                began = time.monotonic()
                writer.write(self._request)
                status, closes = await _answer(reader)
                self.seconds.append(time.monotonic() - began)
                self.statuses[status] += 1
                if status == 429:
                    await asyncio.sleep(1)  # as Retry-After says
                await asyncio.sleep(self._pause * (0.5 + random.random()))
        finally:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split()[1]), b"connection: close" in head


async def slowloris(
    port: int, request: bytes, *, bad: int, honest: int, seconds: float
) -> dict[str, Any]:
    """Honest clients beside slow ones: how long either waited."""
    bads = [Bad(port, number) for number in range(bad)]
    honests = [Honest(port, request, number, pause=0.1) for number in range(honest)]
    await _together([*bads, *honests], seconds)
    borne = [each for client in bads for each in client.borne]
    return {
        "bad_clients": bad,
        "bad_connections": len(borne),
        "bad_longest_s": round(max(borne, default=0.0), 2),
        **_told(honests, seconds),
    }


async def crowd(
    port: int, requests: list[bytes], *, clients: int, seconds: float
) -> dict[str, Any]:
    """A thousand clients that all ask at once; each request of the list has its share of them."""
    honests = [Honest(port, requests[number % len(requests)], number) for number in range(clients)]
    await _together(honests, seconds)
    shares = Counter(
        {n: sum(c.statuses[200] for c in honests[n :: len(requests)]) for n in range(len(requests))}
    )
    fairness = min(shares.values()) / max(max(shares.values()), 1)
    return {"shares_least_to_most": round(fairness, 2), **_told(honests, seconds)}


async def _together(clients: list[Any], seconds: float) -> None:
    tasks = [asyncio.create_task(client.run()) for client in clients]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _told(honests: list[Honest], seconds: float) -> dict[str, Any]:
    waited = sorted(each for client in honests for each in client.seconds)
    statuses = sum((client.statuses for client in honests), Counter[int]())
    return {
        "clients": len(honests),
        "seconds": seconds,
        "answers": len(waited),
        "statuses": dict(sorted(statuses.items())),
        "cut_off": sum(client.cut for client in honests),
        "never_answered": sum(not client.seconds for client in honests),
        "p50_ms": _percentile(waited, 0.5),
        "p99_ms": _percentile(waited, 0.99),
        "longest_ms": _percentile(waited, 1.0),
    }


def _percentile(waited: list[float], part: float) -> float | None:
    return round(waited[int((len(waited) - 1) * part)] * 1000, 1) if waited else None
