"""What becomes of what a model said of a document: filled, turned away or failed."""

from typing import Any

from bson.errors import BSONError

from superduper.imputations.decide import NoValue, Work, read_as, split_outputs
from superduper.imputations.fill import LARGE_BYTES, Fill
from superduper.imputations.imputation import ImputationRecord
from superduper.imputations.isolate import Outcome
from superduper.imputations.provenance import fill_record
from superduper.imputations.writing import Prepared


def judge(
    record: ImputationRecord, work: Work, outcome: Outcome, prepared: Prepared, at: int
) -> None:
    """Sort one outcome into what is prepared: to be written, to be left blank, or failed."""
    if outcome.get("out_of_domain"):  # then what the model makes of it is no matter
        prepared.outside.append((work.case, outcome["out_of_domain"]))
        return
    if outcome.get("error"):
        prepared.failed.append((work.case, outcome["error"]))
        return
    confidence, value = outcome.get("confidence"), outcome.get("value")
    least = record.spec.get("min_confidence")
    unsure = least is not None and not (confidence is not None and confidence >= least)
    if unsure and value is not None:
        prepared.withheld.append((work.case, outcome))
        return
    try:
        outputs = split_outputs(value, record.write_paths)
        due = (*work.missing, *work.stale)
        fills = [_fill(record, work, path, outputs[path], confidence, at) for path in due]
    except NoValue as error:
        prepared.without_value.append((work.case, {**outcome, "error": _described(error)}))
        return
    except (ValueError, BSONError, OverflowError) as error:
        prepared.failed.append((work.case, _described(error)))
        return
    prepared.fills += [(work, fill) for fill in fills]


def _described(error: Exception) -> dict[str, str]:
    return {"type": type(error).__name__, "message": str(error)}


def _fill(
    record: ImputationRecord, work: Work, path: str, value: Any, confidence: float | None, at: int
) -> Fill:
    inputs = read_as(record, work.document, work.values)
    origin = fill_record(
        imputation=record.name,
        version=work.case.version,
        at=at,
        inputs=work.case.input,
        value=value,
        confidence=confidence,
    )
    large = len(work.document.raw) > LARGE_BYTES
    return Fill(work.document_id, inputs, path, value, origin, work.stale.get(path), large)
