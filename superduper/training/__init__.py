"""The training core, for users; each name is imported when it is first asked for.

torch is slow to import, and programs that only declare imputations do without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superduper.training.batch_results import merge_add_level, zip_dicts
    from superduper.training.charts import visualize
    from superduper.training.checkpoints import Checkpointing, Checkpoints
    from superduper.training.configs import make_config
    from superduper.training.database_log import DatabaseLogger
    from superduper.training.engine import Engine, Plan, Stage
    from superduper.training.epoch_logs import (
        ConsoleLogger,
        CSVLogger,
        JSONLogger,
        TensorBoardLogger,
    )
    from superduper.training.graph import Graph, Node
    from superduper.training.hashes import data_hash, file_hash, model_hash
    from superduper.training.multiple_optimizers import MultipleOptimizers
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
    from superduper.training.progress import TQDM, TimeProfiler
    from superduper.training.run_folder import load_epoch
    from superduper.training.scores import highscores
    from superduper.training.sources import IndexSource, tensor_source
    from superduper.training.splits import train_validate_test_split
    from superduper.training.stops import LossStop, NEpochs, TargetStop, TimeStop
    from superduper.training.streams import Infinite, load_by_random_id
    from superduper.training.torch_model import TorchModel
    from superduper.training.train import train_model
    from superduper.training.trainer import Trainer
    from superduper.training.values import (
        Constant,
        DecreasingOnPlateau,
        Exponential,
        LambdaEpoch,
        Schedule,
        Switch,
        ValuePolicy,
    )
    from superduper.training.web import web_api

_HOMES = {
    "BestWeights": "policies",
    "CSVLogger": "epoch_logs",
    "Checkpointing": "checkpoints",
    "Checkpoints": "checkpoints",
    "ConsoleLogger": "epoch_logs",
    "Constant": "values",
    "DatabaseLogger": "database_log",
    "DecreasingOnPlateau": "values",
    "EarlyStopping": "policies",
    "Engine": "engine",
    "Exponential": "values",
    "Graph": "graph",
    "IndexSource": "sources",
    "Infinite": "streams",
    "JSONLogger": "epoch_logs",
    "LambdaEpoch": "values",
    "LossStop": "stops",
    "MultipleOptimizers": "multiple_optimizers",
    "NEpochs": "stops",
    "NaNStop": "policies",
    "Node": "graph",
    "Objective": "objective",
    "Patience": "policies",
    "Plan": "engine",
    "Policy": "policies",
    "Schedule": "values",
    "Stage": "engine",
    "StopRun": "policies",
    "Switch": "values",
    "TQDM": "progress",
    "TargetStop": "stops",
    "TensorBoardLogger": "epoch_logs",
    "Term": "objective",
    "TimeProfiler": "progress",
    "TimeStop": "stops",
    "TorchModel": "torch_model",
    "Trainer": "trainer",
    "ValuePolicy": "values",
    "data_hash": "hashes",
    "file_hash": "hashes",
    "highscores": "scores",
    "load_by_random_id": "streams",
    "load_epoch": "run_folder",
    "make_config": "configs",
    "merge_add_level": "batch_results",
    "model_hash": "hashes",
    "optimizer_of": "optimizers",
    "tensor_source": "sources",
    "train_model": "train",
    "train_validate_test_split": "splits",
    "visualize": "charts",
    "web_api": "web",
    "zip_dicts": "batch_results",
}

__all__ = [
    "BestWeights",
    "CSVLogger",
    "Checkpointing",
    "Checkpoints",
    "ConsoleLogger",
    "Constant",
    "DatabaseLogger",
    "DecreasingOnPlateau",
    "EarlyStopping",
    "Engine",
    "Exponential",
    "Graph",
    "IndexSource",
    "Infinite",
    "JSONLogger",
    "LambdaEpoch",
    "LossStop",
    "MultipleOptimizers",
    "NEpochs",
    "NaNStop",
    "Node",
    "Objective",
    "Patience",
    "Plan",
    "Policy",
    "Schedule",
    "Stage",
    "StopRun",
    "Switch",
    "TQDM",
    "TargetStop",
    "TensorBoardLogger",
    "Term",
    "TimeProfiler",
    "TimeStop",
    "TorchModel",
    "Trainer",
    "ValuePolicy",
    "data_hash",
    "file_hash",
    "highscores",
    "load_by_random_id",
    "load_epoch",
    "make_config",
    "merge_add_level",
    "model_hash",
    "optimizer_of",
    "tensor_source",
    "train_model",
    "train_validate_test_split",
    "visualize",
    "web_api",
    "zip_dicts",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
