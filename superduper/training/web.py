"""A finished run as a web API: one call makes the application that answers its predictions."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch

from superduper.errors import InvalidInput, MissingExtra
from superduper.training.predictions import Predicted, predict
from superduper.training.run_folder import RunFolder, load_epoch

try:
    from fastapi import Body, FastAPI, HTTPException
except ImportError as error:
    raise MissingExtra.of("server", "a web API") from error

MAX_RECORDS = 10_000

Preprocess = Callable[[list[Any]], Any]


def web_api(
    model_dir: str | Path,
    model: torch.nn.Module,
    epoch: int | None = None,
    preprocess: Preprocess | None = None,
) -> FastAPI:
    """An application with `POST /predict` and `GET /`, for uvicorn or any other ASGI server.

    The body is `{"inputs": [record, ...]}`, the answer `{"values": [...]}`, for classes with
    `probabilities`. `preprocess` makes a list of records into what the model is called with, a
    tensor or a tuple of tensors; without it records are numbers, or nested lists of them.
    It checks no tokens: it is for a machine of one's own, or behind something that does.
    """
    origin = load_epoch(model_dir, model, epoch)
    record = RunFolder(model_dir).read("run.json") or {}
    application = FastAPI(title=f"{type(model).__name__}, epoch {origin['epoch']}")

    @application.get("/")
    def about() -> dict[str, Any]:
        """Which model this is."""
        named = {name: record.get(name) for name in ("id", "model", "data", "test", "parent")}
        return {**named, "epoch": origin["epoch"], "hash": origin["hash"]}

    @application.post("/predict")
    def predictions(inputs: Annotated[list[Any], Body(embed=True)]) -> dict[str, Any]:
        """What the model says about records."""
        if not 0 < len(inputs) <= MAX_RECORDS:
            raise HTTPException(422, f"give 1 to {MAX_RECORDS} records, not {len(inputs)}")
        try:
            return _answer(predict(model, *_features(inputs, preprocess)))
        except (InvalidInput, RuntimeError, TypeError, ValueError) as error:
            raise HTTPException(422, f"the model cannot take these inputs: {error}") from error

    return application


def _features(inputs: list[Any], preprocess: Preprocess | None) -> tuple[torch.Tensor, ...]:
    made = torch.tensor(inputs, dtype=torch.float32) if preprocess is None else preprocess(inputs)
    return made if isinstance(made, tuple) else (made,)


def _answer(predicted: Predicted) -> dict[str, Any]:
    if not predicted.values.isfinite().all():
        raise InvalidInput("the prediction is not finite")
    answer = {"values": predicted.values.tolist()}
    if predicted.probabilities is not None:
        answer["probabilities"] = predicted.probabilities.tolist()
    return answer
