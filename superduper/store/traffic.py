"""Which versions beside the live one get a share of what servers are asked, and how they did."""

from collections.abc import Mapping
from typing import Any

from pymongo.database import Database

from superduper.store.mongo import server_now_ms

NAME = "superduper.traffic"


def traffic_id(collection: str, kind: str, name: str) -> str:
    """The `_id` of the policy of a model or an imputation."""
    return f"{collection}/{kind}/{name}"


class Traffic:
    """The policies of one database, each with what was counted since it was set."""

    def __init__(self, database: Database[Any]) -> None:
        self._database = database
        self._policies = database[NAME]

    def get(self, id: str) -> dict[str, Any] | None:
        """A policy with its counts; None if everything goes to the live version."""
        return self._policies.find_one({"_id": id})

    def set(self, id: str, policy: Mapping[str, Any], *, by: str) -> None:
        """Put a policy in the place of the one before; counting begins anew."""
        now = server_now_ms(self._database)
        kept = {"_id": id, **policy, "set_at": now, "set_by": by, "counts": {}}
        self._policies.replace_one({"_id": id}, kept, upsert=True)

    def delete(self, id: str) -> None:
        """Everything goes to the live version again."""
        self._policies.delete_one({"_id": id})

    def add(self, id: str, set_at: int, counts: Mapping[str, int], largest: float) -> None:
        """Add what was counted under a policy, unless another one has taken its place."""
        change: dict[str, Any] = {"$inc": {f"counts.{name}": n for name, n in counts.items()}}
        if largest > 0:
            change["$max"] = {"counts.largest_difference": largest}
        self._policies.update_one({"_id": id, "set_at": set_at}, change)
