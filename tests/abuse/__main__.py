"""Attack a server on loopback and print one line of JSON: the long forms of the tests.

scripts/abuse fuzz --cases 10000    made-up requests, as many for each role
scripts/abuse inject                hostile values in every parameter and field
scripts/abuse raw --cases 20000     bytes that are not HTTP
scripts/abuse slow --seconds 60     500 slow clients beside 50 honest ones
scripts/abuse crowd --seconds 30    1,000 clients at once
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from starlette.testclient import TestClient

from superduper.service import Service
from superduper.store.embedded import attach
from superduper_server.app import build_app
from superduper_server.limits import Limits
from superduper_server.tokens import ROLES, Tokens
from tests.abuse.clients import crowd, slowloris
from tests.abuse.fuzz import fuzz
from tests.abuse.injections import Watching, inject
from tests.abuse.raw import resident_mb, send_mangled
from tests.server.running import BASE_URL, Running, running

DATABASE = "abuse"


def main() -> None:
    """Run one attack; exit with 1 if anything is not as it must be."""
    options = _options()
    began, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="superduper-abuse-") as folder:
        store = attach(Path(folder) / "store")
        try:
            figures, problems = ATTACKS[options.attack](options, store.address, Path(folder))
        finally:
            store.close()
    figures |= {
        "took_s": round(time.monotonic() - began),
        "cpu_s": round(time.process_time() - cpu),
    }
    print(json.dumps({"attack": options.attack, **figures, "problems": problems[:20]}))
    sys.exit(bool(problems))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="scripts/abuse")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


Result = tuple[dict[str, Any], list[str]]


def _fuzz(options: argparse.Namespace, address: str, folder: Path) -> Result:
    figures: dict[str, Any] = {}
    problems: list[str] = []
    with MongoClient[dict[str, Any]](address) as client:
        database = client[DATABASE]
        database["docs"].insert_many({"_id": n, "x": [1.0, n], "y": "a"} for n in range(5))
        service = Service(database)
        for role in ROLES:
            app = build_app(service, limits=Limits(token_rate=1e6))
            token = Tokens(database).create(role)["token"]
            operations = sum(len(methods) for methods in app.openapi()["paths"].values())
            each = -(-options.cases // operations)
            outcome = fuzz(app, role, token, each=each, seed=options.seed)
            figures[role] = {
                "cases": outcome.cases,
                "statuses": dict(sorted(outcome.statuses.items())),
            }
            problems += [f"{role}: {problem}" for problem in outcome.problems]
        service.close()
    return figures, problems


def _inject(options: argparse.Namespace, address: str, folder: Path) -> Result:
    watching = Watching()
    with MongoClient[dict[str, Any]](address, event_listeners=[watching]) as client:
        database = client[DATABASE]
        database["docs"].insert_many({"_id": n, "x": n} for n in range(1000))
        service = Service(database)
        app = build_app(service, insecure=True)
        with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as http:
            outcome = inject(app, http)
        service.close()
    figures = {"cases": outcome.cases, "statuses": dict(sorted(outcome.statuses.items()))}
    return {**figures, "reached_the_database": len(watching.found)}, [
        *outcome.problems,
        *watching.found,
    ]


def _raw(options: argparse.Namespace, address: str, folder: Path) -> Result:
    with _server(address, folder) as server:
        before = resident_mb(server.process.pid)
        said, problems = send_mangled(_port(server), range(options.cases))
        grown = resident_mb(server.process.pid) - before
        with server.http() as http:
            if http.get("/v1/status").status_code != 200:
                problems.append("the server answers no more")
    if grown > 50:
        problems.append(f"the server has grown by {grown:.0f} MB")
    return {"cases": options.cases, "answers": dict(said), "grown_mb": round(grown, 1)}, problems


def _slow(options: argparse.Namespace, address: str, folder: Path) -> Result:
    with _server(address, folder) as server:
        request = _asking(server.ready["token"])
        figures = asyncio.run(
            slowloris(_port(server), request, bad=500, honest=50, seconds=options.seconds)
        )
    problems = []
    if set(figures["statuses"]) != {200} or figures["cut_off"] or figures["never_answered"]:
        problems.append("honest clients were refused")
    if figures["p99_ms"] > 1000:
        problems.append("honest clients waited for over a second")
    if figures["bad_longest_s"] > min(30, options.seconds - 0.5):
        problems.append("slow clients were borne for too long")
    return figures, problems


def _crowd(options: argparse.Namespace, address: str, folder: Path) -> Result:
    with _server(address, folder) as server, server.http() as http:
        tokens = [
            http.post("/v1/tokens", json={"role": "reader"}).json()["token"] for _ in range(10)
        ]
        requests = [_asking(token) for token in tokens]
        figures = asyncio.run(crowd(_port(server), requests, clients=1000, seconds=options.seconds))
    problems = []
    if set(figures["statuses"]) - {200, 429} or figures["cut_off"]:
        problems.append("clients were refused otherwise than with 429")
    if figures["shares_least_to_most"] < 0.5:
        problems.append("a token was starved")
    return figures, problems


def _server(address: str, folder: Path) -> Any:
    arguments = ("serve", "--uri", address, "--database", DATABASE, "--port", "0", "--json")
    return running(folder / "log", *arguments, SUPERDUPER_HOME=str(folder / "home"))


def _port(server: Running) -> int:
    return int(server.ready["url"].rpartition(":")[2])


def _asking(token: str) -> bytes:
    return f"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


ATTACKS: dict[str, Callable[[argparse.Namespace, str, Path], Result]] = {
    "fuzz": _fuzz,
    "inject": _inject,
    "raw": _raw,
    "slow": _slow,
    "crowd": _crowd,
}

if __name__ == "__main__":
    main()
