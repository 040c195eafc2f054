"""The short form of `scripts/abuse fuzz`: made-up requests to every operation, for each role."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from pymongo.database import Database

from superduper.command import Role
from superduper_server.tokens import ROLES
from tests.abuse.fuzz import fuzz


@pytest.mark.parametrize("role", ROLES)
def test_nothing_made_up_breaks_the_server(
    app: FastAPI, database: Database[Any], token_of: Callable[[Role], str], role: Role
) -> None:
    database["docs"].insert_many({"_id": n, "x": [1.0, n], "y": "a"} for n in range(5))
    outcome = fuzz(app, role, token_of(role), each=4, seed=1)
    assert outcome.problems == []
    assert outcome.cases > 250, "more than 1,000 for the four roles"
    assert outcome.statuses[403] == 0 if role == "admin" else outcome.statuses[403] > 10
