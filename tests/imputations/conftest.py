"""What several tests of imputations begin with."""

from typing import Any

import pytest
from filling import record_of
from pymongo.database import Database

from superduper.imputations.imputation import Imputations


@pytest.fixture
def imputations(database: Database[Any]) -> Imputations:
    """An imputation whose first version is live."""
    imputations = Imputations(database)
    imputations.create(record_of(model="model"))
    imputations.activate("docs", "imputation", 1, by="test", reason="test", model_version=1)
    return imputations
