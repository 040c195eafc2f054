"""Hostile values in every parameter and field that the API describes: none gets anywhere."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from pymongo.monitoring import CommandListener, CommandStartedEvent
from starlette.testclient import TestClient

from tests.abuse.fuzz import MOST_BYTES_OF_AN_ERROR, Outcome

LONG = "EVIL" * 2000
STRINGS = (
    *(
        "[$ne]=1",
        "'; return true; //",
        '"; sleep(5000); "',
        "$where",
        "$gt",
        "__proto__",
        "constructor",
    ),
    *("../../etc/passwd", "..%2f..%2fetc", "a\0b", "\r\nX-Evil: 1", "{{7*7}}", "${7*7}", "%s%n%x"),
    *("<script>alert(1)</script>", "javascript:1", "file:///etc/passwd", "http://127.0.0.1:1/"),
    *(
        "system.users",
        "admin.$cmd",
        "superduper.tokens",
        "docs\n",
        " docs",
        "д",
        "\u202edocs",
        "😀",
    ),
    *("a" * 300, LONG, "-1", "0", "1e999", "NaN", "9" * 400, "null", "true", "[]", "{}"),
)
OBJECTS: tuple[Any, ...] = (
    *(
        {"$ne": None},
        {"$gt": ""},
        {"$where": "sleep(5000)"},
        {"$regex": "(a+)+$"},
        {"$exists": True},
    ),
    {"$expr": {"$function": {"body": "function(){}", "args": [], "lang": "js"}}},
    {"$or": [{}, {"$where": "1"}]},
    {"a": {"$elemMatch": {"$where": "1"}}},
    {"$set": {"$where": 1}},
    [{"$out": "superduper.tokens"}],
    {"$lookup": {"from": "superduper.tokens", "as": "t"}},
    {"$oid": "x"},
    {"$code": "1"},
    {"$regularExpression": {"pattern": ".*", "options": ""}},
    {"$ref": "superduper.tokens", "$id": 1},
    {"__class__": "os.system", "__reduce__": ["os.system", "true"]},
    *([], {}, None, True, -1, 2**63, 1.5, "", LONG, [[]], [None], {"": 1}, {"a.b": 1}, {LONG: 1}),
)
# None of these may ever reach the database; the operators that the server itself uses are others.
FORBIDDEN = ("$where", "$function", "$accumulator", "$out", "$merge", "$lookup", "$regex", "$code")
TAKEN = frozenset({200, 201, 202, 400, 404, 405, 409, 413, 415, 422, 501})


class Watching(CommandListener):
    """Notes what reaches the database and must not."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        """One command that is sent."""
        keys = set(_keys(event.command))
        self.found += [f"{event.command_name}: {key}" for key in keys.intersection(FORBIDDEN)]

    def succeeded(self, event: Any) -> None:
        """Not needed."""

    def failed(self, event: Any) -> None:
        """Not needed."""


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _keys(each)


def inject(app: FastAPI, client: TestClient, *, every: int = 1) -> Outcome:
    """Send every so-manyth hostile value to each place of each operation."""
    outcome = Outcome()
    number = 0
    for method, path, places in _operations(app):
        for place in places:
            for evil in OBJECTS if place[0] == "body" else STRINGS:
                number += 1
                if number % every == 0:
                    _send(client, method, path, places, place, evil, outcome)
    return outcome


def _operations(app: FastAPI) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    described = app.openapi()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            places = [(each["in"], each["name"]) for each in operation.get("parameters", ())]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body and "$ref" in body["schema"]:
                name = body["schema"]["$ref"].rpartition("/")[2]
                fields = described["components"]["schemas"][name]["properties"]
                places += [("body", field) for field in fields]
            yield method.upper(), path, places


HONEST = {
    "collection": "docs",
    "name": "thing",
    "version": "1",
    "id": "nobody",
    "model": "docs.thing",
}


def _send(
    client: TestClient,
    method: str,
    path: str,
    places: list[tuple[str, str]],
    place: tuple[str, str],
    evil: Any,
    outcome: Outcome,
) -> None:
    where, name = place
    url, query = path, {}
    for kind, each in places:
        if kind == "path":
            value = evil if each == name and where == "path" else HONEST.get(each, "x")
            url = url.replace(f"{{{each}}}", quote(value, safe="") or "x")
        elif kind == "query" and each == name:
            query[each] = evil
    body = (
        json.dumps({name: evil}) if where == "body" else "{}" if method in ("POST", "PUT") else ""
    )
    headers = {"Content-Type": "application/json"} if body else {}
    answer = client.request(method, url, params=query, content=body.encode(), headers=headers)
    outcome.cases += 1
    outcome.statuses[answer.status_code] += 1
    told = f"{method} {path} {place} {str(evil)[:60]!r}: {answer.status_code}"
    if answer.status_code not in TAKEN:
        outcome.problems.append(f"{told} {answer.text[:200]}")
    if answer.status_code >= 400 and len(answer.content) > MOST_BYTES_OF_AN_ERROR:
        outcome.problems.append(f"{told}: {len(answer.content)} bytes")
    if answer.status_code >= 400 and "EVIL" * 100 in answer.text:
        outcome.problems.append(f"{told}: an echo")
    if "x-evil" in answer.headers:
        outcome.problems.append(f"{told}: a header of the client's")
