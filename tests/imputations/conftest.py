"""What several tests of imputations begin with."""

from typing import Any

import pytest
from filling import record_of
from pymongo.database import Database
from watching import Watching

from superduper.imputations.imputation import Imputations
from tests.imputations.fitting import Fitting


@pytest.fixture
def imputations(database: Database[Any]) -> Imputations:
    """An imputation whose first version is live."""
    imputations = Imputations(database)
    imputations.create(record_of(model="model"))
    imputations.activate("docs", "imputation", 1, by="test", reason="test", model_version=1)
    return imputations


@pytest.fixture
def watching(database: Database[Any]) -> Watching:
    """Imputations that are live, and services that fill."""
    return Watching(database)


@pytest.fixture
def fitting(database: Database[Any]) -> Fitting:
    """A collection with fits."""
    return Fitting(database)
