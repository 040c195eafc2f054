"""Requests made up from the API's own description, for each role: nothing may break, or leak."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import schemathesis
from fastapi import FastAPI
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from superduper.command import Role
from superduper_server.tokens import Identity

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MOST_BYTES_OF_AN_ERROR = 4096
PATIENCE_SECONDS = 120.0  # the machine may be busy; how long answers take is measured elsewhere


@dataclass
class Outcome:
    """What came of it."""

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def fuzz(app: FastAPI, role: Role, token: str, *, each: int, seed: int) -> Outcome:
    """Send as many made-up requests to each operation as asked, with the token of a role."""
    outcome = Outcome()
    headers = {"Authorization": f"Bearer {token}"}
    for operation in _operations(app):
        least = app.state.table[operation.method.upper(), operation.path]
        allowed = least is None or Identity("", role).may(least)
        _fuzz_one(operation, headers, allowed, outcome, each=each, seed=seed)
    return outcome


def _operations(app: FastAPI) -> Iterator[Any]:
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    for result in schema.get_all_operations():
        yield result.ok()


def _fuzz_one(
    operation: Any,
    headers: dict[str, str],
    allowed: bool,
    outcome: Outcome,
    *,
    each: int,
    seed: int,
) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=each,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        answer = case.call(headers=headers, timeout=PATIENCE_SECONDS)
        outcome.cases += 1
        outcome.statuses[answer.status_code] += 1
        for problem in _problems(case, answer, allowed):
            outcome.problems.append(f"{operation.label}: {problem}")

    ask()


def _problems(case: Any, answer: Any, allowed: bool) -> Iterator[str]:
    if not allowed and answer.status_code != 403:
        yield f"{answer.status_code} although the role may not"
    if answer.status_code >= 400 and len(answer.content) > MOST_BYTES_OF_AN_ERROR:
        yield f"an error of {len(answer.content)} bytes"
    try:
        case.validate_response(answer, checks=CHECKS)
    except BaseExceptionGroup as group:
        yield f"{answer.status_code} {' '.join(str(group.exceptions[0]).split())[:600]}"
