"""The API's description, made from the commands and one table of examples."""

import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from superduper.command import PLURALS
from superduper_server.examples import EXAMPLES

REF = "#/components/schemas/{model}"
IN_PATH = re.compile(r"\{(\w+)\}")
WITH_BODY = ("POST", "PUT")
ERRORS = {
    "400": "The body cannot be read.",
    "401": "No token, or a wrong one.",
    "403": "The token's role does not allow this.",
    "404": "Nothing has that name.",
    "409": "Something is in the way, or still uses it.",
    "413": "The body is too large.",
    "415": "The body is of a type that is not taken, or compressed.",
    "422": "The request is not valid; the message names the field.",
    "429": "Too many requests are waiting; see Retry-After.",
    "501": "It needs something that is not installed on the server.",
    "503": "The database, a worker or a model is not ready; see Retry-After.",
    "504": "It took longer than the time allowed.",
}
ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "request_id"],
            "properties": {
                "code": {"type": "string", "example": "not_found"},
                "message": {"type": "string"},
                "request_id": {"type": "string"},
            },
        }
    },
}
V2_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
TAGS = (
    ("documents", "Insert, find and change documents."),
    ("components", "Functions, models, losses, metrics, trainers and encoders, by version."),
    ("imputations", "Fields that are predicted from others."),
    ("predictions", "Outputs of models."),
    ("v2", "The Open Inference Protocol, for its clients: models are `<collection>.<model>`."),
    ("jobs", "Work under way, and what trainings have led to."),
    ("tokens", "Who may use the server, and who did what."),
    ("server", "Health, figures, state."),
)
DESCRIPTION = """
A MongoDB collection whose missing fields fill themselves.

Bodies and answers are JSON, or BSON with `Content-Type` and `Accept: application/bson`. In JSON a
tensor is a list, or `{"dtype", "shape", "data"}` with base64 data; an ObjectId is
`{"$oid": "..."}`, a date `{"$date": "..."}`.
"""


@cache
def schema_of(command: type[BaseModel]) -> dict[str, Any]:
    """A command's JSON schema; not to be changed."""
    return command.model_json_schema(ref_template=REF)


class Schemas:
    """The schemas that the description refers to, by name."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"Error": ERROR_SCHEMA, "V2Error": V2_ERROR_SCHEMA}

    def properties(self, command: type[BaseModel], names: Collection[str]) -> dict[str, Any]:
        """The schemas of some of a command's fields; what they refer to is kept."""
        schema = schema_of(command)
        self.found.update(schema.get("$defs", {}))
        return {name: each for name, each in schema["properties"].items() if name in names}

    def body(self, command: type[BaseModel], names: Collection[str]) -> dict[str, Any]:
        """A reference to the schema of the body that carries some of a command's fields."""
        title = f"{command.__name__}Body"
        self.found[title] = {
            "title": title,
            "type": "object",
            "properties": self.properties(command, names),
            "required": required_of(command, names),
            "additionalProperties": False,
        }
        return {"$ref": REF.format(model=title)}


def required_of(command: type[BaseModel], names: Collection[str]) -> list[str]:
    """Those of a command's fields that have no default."""
    fields = command.model_fields
    return [name for name, info in fields.items() if name in names and info.is_required()]


def describe(command: type[BaseModel], path: str, status: int, schemas: Schemas) -> dict[str, Any]:
    """What FastAPI is told about a command's route."""
    name = command.__name__
    method = command.route.method  # type: ignore[attr-defined]
    in_path = frozenset(IN_PATH.findall(path))
    beside = frozenset(command.model_fields) - in_path - {"kind"}  # the kind is in the path's word
    in_query = frozenset() if method in WITH_BODY else beside
    extra: dict[str, Any] = {
        "parameters": _parameters(command, in_path, in_query, schemas),
        "responses": {str(status): _answer(name), **error_answers()},
    }
    if method in WITH_BODY and beside:
        extra["requestBody"] = _body(command, beside, schemas)
    text = (command.__doc__ or "").strip()
    return {
        "summary": _summary(name),
        "description": text,
        "tags": [tag_of(path)],
        "openapi_extra": extra,
    }


def _summary(name: str) -> str:
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
    return words[0].upper() + words[1:]


def tag_of(path: str) -> str:
    """The part of the API that a path belongs to."""
    for tag, *words in (
        ("predictions", "predict", "traffic", "form"),
        ("documents", "documents"),
        ("imputations", "imputations", "watchers"),
        ("jobs", "jobs", "runs", "highscores"),
        ("tokens", "tokens", "audit"),
        ("server", "status", "healthz", "readyz", "metrics"),
        ("components", "{name}", *PLURALS.values()),
    ):
        if any(part in words for part in path.split("/")):
            return tag
    return "documents"


def _parameters(
    command: type[BaseModel],
    in_path: frozenset[str],
    in_query: frozenset[str],
    schemas: Schemas,
) -> list[dict[str, Any]]:
    required = required_of(command, in_query)
    return [
        {
            "name": name,
            "in": "path" if name in in_path else "query",
            "required": name in in_path or name in required,
            "schema": schema,
        }
        for name, schema in schemas.properties(command, in_path | in_query).items()
    ]


def _body(command: type[BaseModel], names: frozenset[str], schemas: Schemas) -> dict[str, Any]:
    json: dict[str, Any] = {"schema": schemas.body(command, names)}
    asked, _ = EXAMPLES.get(command.__name__, (None, None))
    if asked is not None:
        json["example"] = asked
    return {
        "required": bool(required_of(command, names)),
        "content": {
            "application/json": json,
            "application/bson": {"schema": {"type": "string", "format": "binary"}},
        },
    }


def _answer(name: str) -> dict[str, Any]:
    _, answered = EXAMPLES.get(name, (None, None))
    json: dict[str, Any] = {"schema": {}}
    if answered is not None:
        json["example"] = answered
    return {"description": "The answer.", "content": {"application/json": json}}


def error_answers(model: str = "Error") -> dict[str, Any]:
    """What may be answered to any request that takes a token."""
    content = {"application/json": {"schema": {"$ref": REF.format(model=model)}}}
    return {status: {"description": text, "content": content} for status, text in ERRORS.items()}


def install(app: FastAPI, schemas: Schemas, public: Mapping[tuple[str, str], Any]) -> None:
    """Let the app describe itself: schemas, tags, and which routes need a token."""

    def describe_app() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _whole(app, schemas, public)
        return app.openapi_schema

    app.openapi = describe_app  # type: ignore[method-assign]


def _whole(app: FastAPI, schemas: Schemas, table: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    whole = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION.strip(),
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in TAGS],
    )
    components = whole.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas.found)
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in whole["paths"].items():
        for method, operation in methods.items():
            role = table.get((method.upper(), path))
            operation["security"] = [{"token": []}] if role else []
            if role:
                operation["description"] = f"{operation.get('description', '')}\n\nRole: {role}."
    return whole
