"""The description of the API, and the page that shows it."""

import re
from importlib.resources import files
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from superduper import commands
from superduper.command import build
from superduper_server import admin_routes, docs_page
from superduper_server.examples import EXAMPLES


@pytest.fixture
def described(stranger: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = stranger.get("/openapi.json").json()
    return found


def test_every_route_is_described(app: FastAPI, described: dict[str, Any]) -> None:
    hidden = {"/", "/v2/", "/openapi.json", *docs_page.FILES}
    wanted = {
        (method.lower(), path)
        for method, path in app.state.table
        if path not in hidden and "/losss" not in path and method != "HEAD"
    }
    found = {(m, path) for path, methods in described["paths"].items() for m in methods}
    assert found == wanted


def test_every_operation_says_what_it_is(described: dict[str, Any]) -> None:
    ids = set()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            where = (method, path)
            assert operation["summary"], where
            assert operation["tags"][0] in {tag["name"] for tag in described["tags"]}, where
            assert operation["operationId"] not in ids, where
            ids.add(operation["operationId"])
            declared = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert declared >= set(re.findall(r"\{(\w+)\}", path)) - {"kinds"}, where


def test_routes_for_commands_have_examples(described: dict[str, Any]) -> None:
    names = {command.__name__ for command in commands.all_commands()}
    assert names | {"ListTokens", "CreateToken", "RevokeToken", "ListAudit"} == set(EXAMPLES)
    for path, methods in described["paths"].items():
        for operation in methods.values():
            body = operation.get("requestBody")
            if body is not None and body["required"]:
                assert "example" in body["content"]["application/json"], path


def test_the_examples_are_valid() -> None:
    place = {"collection": "docs", "name": "thing", "version": 1, "kind": "model", "id": "x"}
    every = {command.__name__: command for command in commands.all_commands()}
    for name, (asked, _) in EXAMPLES.items():
        command: Any = every.get(name) or getattr(admin_routes, name)
        fields = {k: v for k, v in place.items() if k in command.model_fields}
        build(command, **{**fields, **(asked or {})})


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    text = str(described)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in described["components"]["schemas"], name


def test_who_needs_a_token_is_said(app: FastAPI, described: dict[str, Any]) -> None:
    assert described["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert described["paths"]["/healthz"]["get"]["security"] == []
    status = described["paths"]["/v1/status"]["get"]
    assert status["security"] == [{"token": []}]
    assert "Role: reader." in status["description"]


def test_the_page_asks_nobody_else(stranger: TestClient) -> None:
    root = stranger.get("/", follow_redirects=False)
    assert root.headers["location"] == "/docs"
    page = stranger.get("/docs")
    assert page.status_code == 200
    assert "http" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        answer = stranger.get(path)
        assert answer.status_code == 200
        assert "script" in answer.headers["content-type"] or "css" in answer.headers["content-type"]
    css = stranger.get("/docs/swagger-ui.css").text
    assert not re.findall(r"url\(\s*[\"']?https?:", css)
    assert "@import" not in css


def test_the_licences_lie_beside_what_is_not_ours() -> None:
    static = files("superduper_server").joinpath("static")
    assert "Apache License" in static.joinpath("swagger-ui.LICENSE.txt").read_text()
    assert static.joinpath("swagger-ui-bundle.js.LICENSE.txt").is_file()
