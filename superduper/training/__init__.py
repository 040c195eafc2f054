"""The training core, for users; each name is imported when it is first asked for.

torch is slow to import, and programs that only declare imputations do without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superduper.training.checkpoints import Checkpointing, Checkpoints
    from superduper.training.engine import Engine, Plan, Stage
    from superduper.training.graph import Graph, Node
    from superduper.training.objective import Objective, Term
    from superduper.training.optimizers import optimizer_of
    from superduper.training.policies import (
        BestWeights,
        EarlyStopping,
        NaNStop,
        Patience,
        Policy,
        StopRun,
    )
    from superduper.training.sources import IndexSource, tensor_source

_HOMES = {
    "BestWeights": "policies",
    "Checkpointing": "checkpoints",
    "Checkpoints": "checkpoints",
    "EarlyStopping": "policies",
    "Engine": "engine",
    "Graph": "graph",
    "IndexSource": "sources",
    "NaNStop": "policies",
    "Node": "graph",
    "Objective": "objective",
    "Patience": "policies",
    "Plan": "engine",
    "Policy": "policies",
    "Stage": "engine",
    "StopRun": "policies",
    "Term": "objective",
    "optimizer_of": "optimizers",
    "tensor_source": "sources",
}

__all__ = [
    "BestWeights",
    "Checkpointing",
    "Checkpoints",
    "EarlyStopping",
    "Engine",
    "Graph",
    "IndexSource",
    "NaNStop",
    "Node",
    "Objective",
    "Patience",
    "Plan",
    "Policy",
    "Stage",
    "StopRun",
    "Term",
    "optimizer_of",
    "tensor_source",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
