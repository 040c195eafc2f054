"""What a fit has trained becomes a version: in the registry, and in the record of its run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.promote import Candidate
from superduper.store.component import Component

if TYPE_CHECKING:
    from superduper.imputations.fitting.job import FitContext

_KEPT = ("best", "metrics", "higher_is_better", "stopped", "final_hash")


@dataclass(frozen=True)
class Publisher:
    """Publishes the weights of one run of a fit."""

    work: "FitContext"
    record: ImputationRecord
    job: str
    run: str

    def publish(
        self,
        weights: bytes,
        domain: bytes | None,
        sealed: Mapping[str, Any],
        trained: Mapping[str, Any],
    ) -> Candidate:
        """Publish weights as a new version, which is then a candidate for going live.

        `domain` is what inputs are compared with, `sealed` is what the child told of the data,
        `trained` what it told of the training.
        """
        record, spec = self.record, self.record.spec
        version = self.work.imputations.next_version(record)
        component = self.work.registry.publish_weights(
            record.collection,
            spec["model"],
            spec["pins"]["model"],
            weights,
            {"imputation": record.name, "version": version, "run": self.run},
            domain,
        )
        self.note("PublishVersion", version, component.content)
        self._succeeded(version, component, sealed, trained)
        watch = spec["watch"]
        return Candidate(
            version=version,
            model_version=component.version,
            watch=watch,
            higher_is_better=trained["higher_is_better"][watch],
            value=trained["best"][watch],
            valid_hash=_valid_hash(sealed),
        )

    def note(self, action: str, version: int, content: str | None = None) -> None:
        """Have the audit log say what became of a version."""
        where = self.record
        subject = f"collection={where.collection} name={where.name} version={version}"
        self.work.audit.append(
            who=f"fit {self.job}", action=action, subject=subject, content=content
        )

    def _succeeded(
        self,
        version: int,
        component: Component,
        sealed: Mapping[str, Any],
        trained: Mapping[str, Any],
    ) -> None:
        scored = {"fold": trained["scored"], **sealed["data"][trained["scored"]]}
        self.work.runs.finish(
            self.run,
            "succeeded",
            version=version,
            model_version=component.version,
            weights=component.weights,
            scored=scored,
            valid_hash=_valid_hash(sealed),
            **{key: trained[key] for key in _KEPT},
        )


def _valid_hash(sealed: Mapping[str, Any]) -> str:
    return str(sealed["data"][sealed["validated_on"]]["hash"])
