"""What the handlers of commands work with: one database and the parts built on it."""

from dataclasses import dataclass
from typing import Any

from pymongo.database import Database

from superduper.imputations.hosting import open_hosts
from superduper.imputations.imputation import Imputations
from superduper.jobs.queue import Queue
from superduper.serving.model_hosts import ModelHosts
from superduper.serving.trials import Tally
from superduper.store.artifacts import ArtifactStore
from superduper.store.audit import Audit
from superduper.store.forms import Forms
from superduper.store.mongo import server_now_ms
from superduper.store.registry import Registry
from superduper.store.signing import Keyring
from superduper.store.traffic import Traffic
from superduper.training.runs import Runs


@dataclass(frozen=True)
class Context:
    """The parts of Superduper that answer commands about one database."""

    database: Database[Any]
    artifacts: ArtifactStore
    registry: Registry
    imputations: Imputations
    queue: Queue
    runs: Runs
    hosts: ModelHosts
    audit: Audit
    traffic: Traffic
    forms: Forms
    tally: Tally

    @classmethod
    def of(cls, database: Database[Any], hosts: ModelHosts | None = None) -> "Context":
        """The parts for a database, with the keys of this machine's home.

        Without hosts it has model hosts of its own.
        """
        artifacts = ArtifactStore(database, Keyring.open())
        registry, traffic, forms = Registry(database, artifacts), Traffic(database), Forms(database)
        return cls(
            database=database,
            artifacts=artifacts,
            registry=registry,
            imputations=Imputations(database),
            queue=Queue(database),
            runs=Runs(database),
            hosts=open_hosts(registry, forms.of) if hosts is None else hosts,
            audit=Audit(database),
            traffic=traffic,
            forms=forms,
            tally=Tally(traffic),
        )

    def now(self) -> int:
        """The database server's time, in milliseconds since the epoch."""
        return server_now_ms(self.database)
