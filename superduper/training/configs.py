"""A run's configuration: defaults and overrides merged in depth, with a seed that is kept."""

import copy
import json
import random
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from superduper.errors import InvalidInput
from superduper.training.group import several
from superduper.training.run_folder import RunFolder

Config = dict[str, Any]

DEFAULTS: Config = {
    "model_dir": "model",
    "n_epochs": 10,
    "save_interval": 1,
    "log_interval": 100,
    "checkpoint_interval": None,
    "nan_stop": True,
    "hash_data": True,
    "device": None,
    "mixed_precision": None,
    "compile": None,
    "processes": None,
}

# What may change between two calls that train the same run: how long, and where its folder lies.
_MAY_CHANGE = ("n_epochs", "model_dir")

_LARGEST_SEED = 2**31 - 1


def make_config(*layers: Mapping[str, Any] | None) -> Config:
    """Layers merged in depth, the later ones first; a seed is drawn where none is given.

    Raises InvalidInput for values that JSON does not know.
    """
    config: Config = {}
    for layer in layers:
        config = merged(config, layer or {})
    if isinstance(config.get("model_dir"), PurePath):
        config["model_dir"] = str(config["model_dir"])
    if config.get("seed") is None:
        # Not from the global generator: a seeded program would draw the same one every time.
        config["seed"] = random.SystemRandom().randint(0, _LARGEST_SEED)
    try:
        return dict(json.loads(json.dumps(config, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the config is kept as JSON, and cannot be: {error}") from error


def run_config(*layers: Mapping[str, Any] | None) -> Config:
    """The config of a run: defaults, then layers; the seed of the folder's run if none is given.

    Raises InvalidInput for settings that make no sense.
    """
    given: Config = dict(DEFAULTS)
    for layer in layers:
        given = merged(given, layer or {})
    if given.get("seed") is None:
        given["seed"] = (RunFolder(given["model_dir"]).read("config.json") or {}).get("seed")
    config = make_config(given)
    _check(config)
    return config


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
    """Overrides on a base; dicts within are merged, anything else is replaced."""
    result = copy.deepcopy(dict(base))
    for key, value in overrides.items():
        mine = result.get(key)
        both = isinstance(mine, Mapping) and isinstance(value, Mapping)
        result[key] = merged(mine, value) if both else copy.deepcopy(value)  # type: ignore[arg-type]
    return result


def _check(config: Config) -> None:
    if type(config["model_dir"]) is not str or not config["model_dir"]:
        raise InvalidInput(f"model_dir is {config['model_dir']!r}: it must be a folder's path")
    for key in ("n_epochs", "save_interval", "log_interval", "checkpoint_interval"):
        value = config[key]
        if value is None and key in ("log_interval", "checkpoint_interval"):
            continue
        if type(value) is not int or value < 1:
            raise InvalidInput(f"{key} is {value!r}: it must be a whole number of at least 1")
    for key in ("nan_stop", "hash_data"):
        if type(config[key]) is not bool:
            raise InvalidInput(f"{key} is {config[key]!r}: it must be true or false")
    if config["mixed_precision"] not in (None, "bf16"):
        raise InvalidInput(
            f"mixed_precision is {config['mixed_precision']!r}: it must be 'bf16', or null for "
            "float32; fp16 needs a loss that is scaled, which train_batch would have to do itself"
        )
    several(config["processes"])
    if type(config["seed"]) is not int or not 0 <= config["seed"] < 2**63:
        raise InvalidInput(f"seed is {config['seed']!r}: it must be a whole number from 0")


def differences(kept: Config, given: Config) -> list[str]:
    """In words, what differs between the config of a run and the one it is called with now."""
    keys = sorted((kept.keys() | given.keys()) - set(_MAY_CHANGE))
    return [
        f"{key} was {json.dumps(kept.get(key))}, is {json.dumps(given.get(key))}"
        for key in keys
        if kept.get(key) != given.get(key)
    ]
