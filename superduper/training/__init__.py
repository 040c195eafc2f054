"""The training core, for users; each name is imported when it is first asked for.

torch is slow to import, and programs that only declare imputations do without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superduper.training.batch_results import merge_add_level, zip_dicts
    from superduper.training.checkpoints import Checkpointing, Checkpoints
    from superduper.training.configs import make_config
    from superduper.training.engine import Engine, Plan, Stage
    from superduper.training.graph import Graph, Node
    from superduper.training.hashes import data_hash, file_hash, model_hash
    from superduper.training.multiple_optimizers import MultipleOptimizers
    from superduper.training.objective import Objective, Term
    from superduper.training.optimizers import optimizer_of
    from superduper.training.policies import BestWeights, EarlyStopping, NaNStop, Patience, Policy, StopRun
    from superduper.training.run_folder import load_epoch
    from superduper.training.scores import highscores
    from superduper.training.sources import IndexSource, tensor_source
    from superduper.training.splits import train_validate_test_split
    from superduper.training.trainer import Trainer

_HOMES = {
    "BestWeights": "policies",
    "Checkpointing": "checkpoints",
    "Checkpoints": "checkpoints",
    "EarlyStopping": "policies",
    "Engine": "engine",
    "Graph": "graph",
    "IndexSource": "sources",
    "MultipleOptimizers": "multiple_optimizers",
    "NaNStop": "policies",
    "Node": "graph",
    "Objective": "objective",
    "Patience": "policies",
    "Plan": "engine",
    "Policy": "policies",
    "Stage": "engine",
    "StopRun": "policies",
    "Term": "objective",
    "Trainer": "trainer",
    "data_hash": "hashes",
    "file_hash": "hashes",
    "highscores": "scores",
    "load_epoch": "run_folder",
    "make_config": "configs",
    "merge_add_level": "batch_results",
    "model_hash": "hashes",
    "optimizer_of": "optimizers",
    "tensor_source": "sources",
    "train_validate_test_split": "splits",
    "zip_dicts": "batch_results",
}

__all__ = [
    "BestWeights",
    "Checkpointing",
    "Checkpoints",
    "EarlyStopping",
    "Engine",
    "Graph",
    "IndexSource",
    "MultipleOptimizers",
    "NaNStop",
    "Node",
    "Objective",
    "Patience",
    "Plan",
    "Policy",
    "Stage",
    "StopRun",
    "Term",
    "Trainer",
    "data_hash",
    "file_hash",
    "highscores",
    "load_epoch",
    "make_config",
    "merge_add_level",
    "model_hash",
    "optimizer_of",
    "tensor_source",
    "train_validate_test_split",
    "zip_dicts",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
