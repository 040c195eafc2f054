"""A real service on a real store, behind the real app."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from pymongo.database import Database
from starlette.testclient import TestClient

from superduper.command import Role
from superduper.service import Service
from superduper.store.mongo import connect_mongo
from superduper_server.app import build_app
from superduper_server.limits import Limits
from superduper_server.serve import Server, listen
from superduper_server.tokens import Tokens
from tests.server.running import BASE_URL, running
from tests.server.v2_models import serving_models
from tests.waiting import until

LIMITS = Limits(body_bytes=200_000, receive_seconds=1.0, documents=100, predict_seconds=20)


@pytest.fixture(scope="session")
def models_server(store_uri: str) -> Iterator[Server]:
    """A real server with registered models, one for all tests that only ask it."""
    with connect_mongo(store_uri) as mongo:
        database = mongo["served_models"]
        with serving_models(database) as server:
            yield server
        mongo.drop_database(database.name)


@pytest.fixture(scope="module")
def plain_server(models_server: Server, store_uri: str) -> Iterator[tuple[str, Any]]:
    """The same models behind uvicorn's own protocol class; its address and fast path."""
    with connect_mongo(store_uri) as mongo:
        service = Service(mongo[models_server.backend.service.context.database.name])
        app = build_app(service, insecure=True)
        bound = listen("127.0.0.1", 0)
        config = uvicorn.Config(app, http="httptools", server_header=False, log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        until(lambda: server.started, what="the server")
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", app.state.fast
        server.should_exit = True
        thread.join(30)
        bound.close()
        service.close()


@pytest.fixture(scope="session", params=["1", "2"], ids="{} processes".format)
def models_url(
    request: pytest.FixtureRequest,
    models_server: Server,
    store_uri: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Where that server is, and another one with the same models and two HTTP processes."""
    if request.param == "1":
        yield models_server.url
        return
    listening = ("--port", "0", "--insecure", "--workers", request.param, "--json")
    arguments = ("serve", "--uri", store_uri, "--database", "served_models", *listening)
    with running(tmp_path_factory.mktemp("served") / "log", *arguments) as server:
        yield server.ready["url"]


@pytest.fixture
def service(database: Database[Any]) -> Iterator[Service]:
    """The service of a fresh database."""
    found = Service(database)
    yield found
    found.close()


@pytest.fixture
def app(service: Service) -> FastAPI:
    """An app with small limits."""
    return build_app(service, limits=LIMITS)


@pytest.fixture
def open_app(service: Service) -> FastAPI:
    """An app that asks for no tokens."""
    return build_app(service, insecure=True, limits=LIMITS)


@pytest.fixture
def token_of(database: Database[Any]) -> Callable[[Role], str]:
    """Makes a token of a role."""
    return lambda role: str(Tokens(database).create(role)["token"])


@pytest.fixture
def stranger(app: FastAPI) -> Iterator[TestClient]:
    """A client without a token."""
    with TestClient(app, base_url=BASE_URL) as client:
        yield client


@pytest.fixture
def client(app: FastAPI, token_of: Callable[[Role], str]) -> Iterator[TestClient]:
    """A client with an administrator's token."""
    headers = {"Authorization": f"Bearer {token_of('admin')}"}
    with TestClient(app, base_url=BASE_URL, headers=headers) as found:
        yield found
