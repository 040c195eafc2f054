"""Alive, ready, and the figures."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pymongo.database import Database
from starlette.testclient import TestClient

from superduper.command import build
from superduper.commands import CreateWatcher
from superduper.imputations.declare import watcher_of
from superduper.imputations.failures import Case, Failures
from superduper.imputations.imputation import Imputations
from superduper.imputations.watching.cutting import cut
from superduper.imputations.watching.ranges import Ranges
from superduper.imputations.watching.scan import wanted
from superduper.jobs.queue import Queue
from superduper.service import Service
from superduper.store.embedded import attach
from superduper.store.mongo import connect_mongo, server_now_ms
from superduper_server.app import build_app
from tests.server.running import BASE_URL
from tests.waiting import until


def test_a_stranger_may_ask_whether_it_is_alive_and_ready(stranger: TestClient) -> None:
    assert stranger.get("/healthz").json() == {"alive": True}
    assert stranger.get("/readyz").json() == {"ready": True, "reasons": []}
    for path in ("/healthz", "/readyz"):
        assert stranger.head(path).status_code == 200


def test_ready_is_honest_when_the_database_is_gone(tmp_path: Path) -> None:
    attachment = attach(tmp_path)
    with connect_mongo(f"{attachment.address}/?serverSelectionTimeoutMS=500") as client:
        service = Service(client["main"])
        app = build_app(service, insecure=True)
        with TestClient(app, base_url=BASE_URL) as reached:
            assert reached.get("/readyz").status_code == 200
            attachment.close()
            until(lambda: reached.get("/readyz").status_code == 503, what="an honest answer")
            answer = reached.get("/readyz")
            assert answer.json()["reasons"] == ["the database does not answer"]
            assert answer.headers["retry-after"] == "1"
            assert attachment.address.removeprefix("mongodb://") not in answer.text
            assert reached.get("/healthz").status_code == 200
            answer = reached.get("/v1/status")
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "not_ready"
            assert answer.headers["retry-after"] == "1"
        with TestClient(build_app(service), base_url=BASE_URL) as guarded:
            header = {"Authorization": "Bearer sd_nobody00_" + "a" * 43}
            # Not 401: who knows whether the token is good.
            assert guarded.get("/v1/status", headers=header).status_code == 503
        service.close()


def test_ready_is_red_while_nobody_fills(stranger: TestClient, database: Database[Any]) -> None:
    imputations = Imputations(database)
    watcher = build(CreateWatcher, collection="docs", name="w", model="m", key="x")
    record = imputations.create(watcher_of(watcher, {}, now=0, author="tests"))

    def reasons() -> list[str]:
        answer = stranger.get("/readyz").json()
        assert answer["ready"] == (not answer["reasons"])
        return list(answer["reasons"])

    assert reasons() == [], "what has no version yet is not filled"
    where = {"_id": record.id}
    imputations.documents.update_one(where, {"$set": {"active": 1}})
    alone = "no worker follows 1 of the collections that are filled"
    until(lambda: reasons() == [alone], what="nobody follows")
    now = server_now_ms(database)
    held = {"owner": "somebody", "expires_at": now + 600_000, "seen_at": now, "lag_ms": 0}
    streams = database["superduper.watchers"]
    streams.insert_one({"_id": "stream:docs", **held})
    until(lambda: reasons() == [], what="somebody follows")
    streams.update_one({}, {"$set": {"lag_ms": 31_000, "seen_at": now - 61_000}})
    until(lambda: len(reasons()) == 2, what="late and silent")
    assert "more than 30 s behind" in reasons()[0]
    assert "silent for 60 s" in reasons()[1]
    imputations.documents.update_one(where, {"$set": {"paused": True}})
    until(lambda: reasons() == [], what="what is paused needs nobody")


def test_ready_is_no_more_once_it_stops(app: FastAPI, stranger: TestClient) -> None:
    app.state.backend.stopping.set()
    answer = stranger.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["the server is shutting down"]


def test_figures_count_routes_not_paths(client: TestClient, database: Database[Any]) -> None:
    for number in range(3):
        client.get(f"/v1/jobs/secret{number}")
    client.get("/v1/secret-nothing")
    text = client.get("/metrics").text
    assert 'superduper_requests_total{method="GET",route="/v1/jobs/{id}",status="404"} 3.0' in text
    assert 'route="unmatched",status="404"' in text
    assert "secret" not in text
    assert re.search(r'superduper_request_seconds_count\{route="/v1/jobs/\{id\}"\} 3.0', text)
    assert "superduper_requests_in_flight 1.0" in text


def test_figures_tell_how_filling_goes(client: TestClient, database: Database[Any]) -> None:
    imputations = Imputations(database)
    watcher = build(CreateWatcher, collection="docs", name="w", model="m", key="x", target="y")
    record = imputations.create(watcher_of(watcher, {}, now=0, author="tests"))
    imputations.activate("docs", "w", 1, by="tests", reason="tests", model_version=1)
    database["docs"].insert_many({"x": each} for each in range(50))

    def figures() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    of_docs, of_w = '{collection="docs"}', '{collection="docs",imputation="w"}'
    assert figures()[f"superduper_backlog_documents{of_w}"] == 50, "nobody has begun"
    assert figures()["superduper_workers"] == 0
    planned = cut(imputations, imputations.get("docs", "w"), 1, wanted(record))
    assert planned is not None
    claim = Ranges(imputations, planned).take()
    assert claim is not None
    claim.save(20, 18, last=3, rate=10.0)
    now = server_now_ms(database)
    database["superduper.watchers"].insert_one(
        {
            "_id": "stream:docs",
            "expires_at": now + 600_000,
            "seen_at": now - 3_000,
            "lag_ms": 1_500,
            "counters": {
                **{"filled": 18, "superseded": 2, "out_of_domain": 5},
                **{"history_lost": 1, "ChildDied": 4},
            },
        }
    )
    case = Case("a", "hash", 1)
    Failures(database, record.id).fail([(case, {"message": "it is poison"})], 1, now)
    Failures(database, record.id).fail([(Case("b", "hash", 1), {})], 3, now)
    outside = {"distance": 3.0, "threshold": 2.0}
    Failures(database, record.id).turn_away([(Case("c", "hash", 1), outside)], now)
    found = figures()
    assert found[f"superduper_watcher_held{of_docs}"] == 1
    assert found[f"superduper_watcher_lag_seconds{of_docs}"] == 1.5
    assert 3 <= found[f"superduper_watcher_silent_seconds{of_docs}"] < 60
    assert found['superduper_fills_total{collection="docs",result="filled"}'] == 18
    assert found['superduper_fills_total{collection="docs",result="superseded"}'] == 2
    assert found['superduper_fills_total{collection="docs",result="out_of_domain"}'] == 5
    of_outside = '{collection="docs",imputation="w",state="out_of_domain"}'
    assert found[f"superduper_failures{of_outside}"] == 1
    assert found[f"superduper_history_lost_total{of_docs}"] == 1
    assert found['superduper_child_deaths_total{cause="died",collection="docs"}'] == 4
    assert found[f"superduper_backlog_documents{of_w}"] == 31, "30 of the scan, one to try again"
    assert found[f"superduper_scan_eta_seconds{of_w}"] == 3
    of_dead = '{collection="docs",imputation="w",state="dead"}'
    assert found[f"superduper_failures{of_dead}"] == 1
    claim.lease.release()
    assert math.isnan(figures()[f"superduper_scan_eta_seconds{of_w}"]), "nobody works on it"
    [row] = client.get("/v1/status").json()["imputations"]
    assert (row["left"], row["eta_seconds"]) == (30, None)


def test_status_says_what_probes_say(client: TestClient, database: Database[Any]) -> None:
    imputations = Imputations(database)
    assert client.get("/v1/status").json()["troubles"] == []
    watcher = build(CreateWatcher, collection="docs", name="w", model="m", key="x")
    imputations.create(watcher_of(watcher, {}, now=0, author="tests"))
    imputations.activate("docs", "w", 1, by="tests", reason="tests", model_version=1)
    [trouble] = client.get("/v1/status").json()["troubles"]
    assert trouble == "no worker follows 1 of the collections that are filled"
    Queue(database).put("fit", {})
    assert "1 jobs wait, and no worker is alive" in client.get("/v1/status").json()["troubles"]
    assert "jobs" not in client.get("/readyz").text, "they keep nobody from being answered"


@pytest.mark.parametrize("status", [401, 404])
def test_refused_requests_are_counted(
    stranger: TestClient, client: TestClient, status: int
) -> None:
    (stranger if status == 401 else client).get("/v1/jobs/x", headers={})
    text = client.get("/metrics").text
    assert f'route="/v1/jobs/{{id}}",status="{status}"' in text
