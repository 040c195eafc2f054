"""Whether a newly trained version goes live: compared on the same validation documents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from superduper.imputations.imputation import ImputationRecord, Imputations
from superduper.store.registry import Registry
from superduper.training.ranking import is_better
from superduper.training.runs import Runs

# Measures the model component's version on the candidate's validation documents.
Compare = Callable[[int], Mapping[str, float]]


@dataclass(frozen=True)
class Candidate:
    """A version that has just been trained, with what it scored on which documents."""

    version: int
    model_version: int
    watch: str
    higher_is_better: bool
    value: float
    valid_hash: str


def promote_if_better(
    candidate: Candidate,
    record: ImputationRecord,
    *,
    imputations: Imputations,
    registry: Registry,
    runs: Runs,
    compare: Compare,
    by: str,
) -> tuple[bool, str]:
    """Make the candidate live if the imputation's `promote` policy says so; answer if and why.

    The first version always goes live. `if_better` compares the watched quantity with that of the
    live version: from its run if that was validated on the same documents, else measured anew.
    """
    live = imputations.get(record.collection, record.name)
    promoted, reason = _verdict(candidate, live, runs, compare)
    if promoted:
        imputations.activate(
            record.collection,
            record.name,
            candidate.version,
            by=by,
            reason=reason,
            model_version=candidate.model_version,
        )
        model = record.spec["model"]
        registry.set_live(record.collection, "model", model, candidate.model_version)
    return promoted, reason


def _verdict(
    candidate: Candidate, live: ImputationRecord, runs: Runs, compare: Compare
) -> tuple[bool, str]:
    policy = live.spec["promote"]
    if live.active is None:
        return True, "the first version"
    if policy != "if_better":
        return policy == "always", f"promote={policy!r}"
    value = _live_value(candidate, live, runs, compare)
    better = is_better(candidate.value, value, candidate.higher_is_better)
    return better, (
        f"{candidate.watch} {candidate.value:.6g} is {'' if better else 'not '}better than "
        f"{value:.6g} of version {live.active} on the same documents"
    )


def _live_value(
    candidate: Candidate, live: ImputationRecord, runs: Runs, compare: Compare
) -> float:
    assert live.active is not None
    run = runs.of_version(live.id, live.active)
    if run is not None and run.get("best") and run["valid_hash"] == candidate.valid_hash:
        return float(run["best"][candidate.watch])
    assert live.active_component is not None  # set together with `active`
    return float(compare(live.active_component[1])[candidate.watch])
