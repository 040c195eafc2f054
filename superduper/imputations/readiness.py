"""Whether what should be filled is being filled: what probes ask, in two small reads."""

from typing import Any

from pymongo.database import Database

from superduper.imputations.imputation import Imputations
from superduper.imputations.watching.watch import NAME
from superduper.store.mongo import server_now_ms

LAG_SECONDS = 30
SILENT_SECONDS = 60


def troubles(database: Database[Any]) -> list[str]:
    """What is wrong with the watching of this database's collections; empty if nothing is.

    Counts, no names: everybody may see the answer.
    """
    wanted = {record.collection for record in Imputations(database).find() if record.filling}
    if not wanted:
        return []
    states = database[NAME].find(
        {"_id": {"$in": [f"stream:{name}" for name in wanted]}},
        {"expires_at": 1, "seen_at": 1, "lag_ms": 1},
    )
    now = server_now_ms(database)
    held = [state for state in states if (state.get("expires_at") or 0) > now]
    late = [state for state in held if (state.get("lag_ms") or 0) > LAG_SECONDS * 1000]
    silent = [
        state for state in held if now - (state.get("seen_at") or now) > SILENT_SECONDS * 1000
    ]
    found = (
        (len(wanted) - len(held), "no worker follows {} of the collections that are filled"),
        (len(late), f"the watchers of {{}} collections are more than {LAG_SECONDS} s behind"),
        (len(silent), f"the change streams of {{}} collections are silent for {SILENT_SECONDS} s"),
    )
    return [text.format(count) for count, text in found if count]
