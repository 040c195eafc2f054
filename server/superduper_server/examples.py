"""One example for each command, for the API's description: what is asked, what is answered."""

from typing import Any

_ID = {"$oid": "69203b1e8f1d2c3a4b5c6d7e"}
_AT = 1763700000000
_JOB = {
    "id": "7c0e7d0a1b2c",
    "kind": "fit",
    "state": "running",
    "attempts": 1,
    "progress": {"done": 120, "total": 400, "metrics": {"accuracy": 0.93}},
    "created_at": _AT,
}
_MODEL = {
    "kind": "model",
    "name": "my_model",
    "version": 2,
    "created_at": _AT,
    "created_by": "k3x9",
}
_IMPUTATION = {
    "name": "y_from_x",
    "collection": "documents",
    "status": "watching",
    "model": "my_model",
    "model_key": "x",
    "target_key": "y",
    "active": 3,
    "metrics": {"accuracy": 0.97},
}
_NAMED = {"name": "y_from_x", "status": "watching", "active": 3}
_ENTRY = {
    "number": 17,
    "at": _AT,
    "who": "k3x90a1b",
    "action": "PromoteVersion",
    "subject": "collection=documents name=y_from_x version=3",
    "outcome": "done",
    "content": None,
    "of": 16,
    "previous": "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
    "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}
_TOKEN = {
    "id": "k3x90a1b",
    "role": "writer",
    "created_at": _AT,
    "expires_at": None,
    "rate": None,
    "at_once": None,
    "last_used": None,
    "revoked": False,
}
_TRAFFIC = {
    "live": 3,
    "canary": {"version": 4, "share": 0.1},
    "shadow": {"version": 5, "share": 1.0, "tolerance": 1e-6},
    "counts": {"live_answered": 903, "canary_answered": 97, "shadow_different": 12},
    "largest_difference": 0.03,
    "set_at": _AT,
    "set_by": "k3x9",
}
_FORM = {
    "form": "auto",
    "tolerance": 0.02,
    "agreement": None,
    "set_at": _AT,
    "set_by": "k3x9",
    "report": {
        "asked": "auto",
        "serves": "bf16",
        "why": None,
        "inputs": 20,
        "on": "server-1",
        "tried": [
            {
                "form": "bf16",
                "why": None,
                "difference": 0.0054,
                "same": None,
                "speedup": 1.8,
                "speedups": {"1": 0.85, "64": 3.8},
            }
        ],
    },
}
_BYTES = {"$binary": {"base64": "gASV...", "subType": "00"}}
_INPUTS = {"inputs": [[0.1, 0.2], [0.3, 0.4]]}
_OUTPUTS = {"outputs": ["cat", "dog"], "version": 3, "confidence": [0.98, 0.71]}

# By the command's name: the body (None: there is none), and the answer.
EXAMPLES: dict[str, tuple[Any, Any]] = {
    "ListCollections": (None, [{"name": "documents", "documents": 1797, "imputations": 1}]),
    "InsertDocuments": (
        {"documents": [{"x": [0.1, 0.2], "y": "cat"}, {"x": [0.3, 0.4]}]},
        {"inserted_ids": [_ID, {"$oid": "69203b1e8f1d2c3a4b5c6d7f"}]},
    ),
    "FindDocuments": (
        {"filter": {"y": {"$exists": True}}, "projection": {"y": 1}, "limit": 10},
        {"documents": [{"_id": _ID, "y": "cat"}]},
    ),
    "CountDocuments": ({"filter": {"y": "cat"}}, {"count": 42}),
    "UpdateDocuments": (
        {"filter": {"_id": _ID}, "update": {"$set": {"y": "dog"}}},
        {"n": 1, "nModified": 1},
    ),
    "ReplaceDocument": (
        {"filter": {"_id": _ID}, "replacement": {"x": [0.5, 0.6]}},
        {"n": 1, "nModified": 1},
    ),
    "DeleteDocuments": ({"filter": {"_id": _ID}}, {"n": 1}),
    "ExplainValue": (
        {"id": _ID, "field": "y"},
        {"state": "filled", "value": "cat", "imputation": "y_from_x", "version": 3},
    ),
    "RegisterComponent": (
        {
            "sealed": {
                "code": _BYTES,
                "tensors": None,
                "format": "dill",
                "python_tag": "cpython-311",
                "magic": "a70d0d0a",
                "dill_version": "0.4.1",
                "torch_version": "2.13.0",
                "source": None,
                "type": "MyModel",
                "modules": [],
            }
        },
        _MODEL,
    ),
    "ListComponents": (None, [{"name": "my_model", "live": 2, "latest": 2, "type": "MyModel"}]),
    "ShowComponent": (None, _MODEL),
    "DeleteComponent": (None, {"deleted": "my_model"}),
    "CreateImputation": (
        {
            "model": "my_model",
            "model_key": "x",
            "target": "my_target",
            "target_key": "y",
            "loss": "classification_loss",
            "metrics": ["accuracy"],
        },
        {**_IMPUTATION, "status": "fitting", "active": None, "metrics": None},
    ),
    "CreateWatcher": (
        {"name": "embed", "model": "my_model", "key": "x"},
        {**_NAMED, "name": "embed"},
    ),
    "ListImputations": (None, [_IMPUTATION]),
    "ShowImputation": (None, _IMPUTATION),
    "DeleteImputation": (None, {"deleted": "y_from_x"}),
    "RefitImputation": (None, {"job": "7c0e7d0a1b2c"}),
    "PromoteVersion": ({"version": 2}, {**_NAMED, "active": 2}),
    "RollbackImputation": (None, {**_NAMED, "active": 2}),
    "RevertVersion": ({"version": 3}, {"reverted": 597}),
    "RedoVersion": ({"version": 3}, {"redone": 597}),
    "PreviewImputation": ({"n": 2}, [{"document": _ID, "value": "cat", "confidence": 0.98}]),
    "PauseImputation": (None, {**_NAMED, "status": "paused"}),
    "ResumeImputation": (None, _NAMED),
    "RetryFailures": (None, {"retried": 3}),
    "ListFailures": (
        None,
        [{"document": _ID, "state": "dead", "attempts": 3, "error": {"type": "ValueError"}}],
    ),
    "ListCorrections": (
        None,
        [{"document": _ID, "field": "y", "how": "changed", "version": 3, "at": _AT}],
    ),
    "ListStates": (
        {"state": "withheld", "limit": 10},
        {"documents": [{"document": _ID, "state": "withheld"}], "after": None},
    ),
    "ListVersions": (
        None,
        [{"version": 3, "status": "succeeded", "live": True, "metrics": {"accuracy": 0.97}}],
    ),
    "ShowHistory": (None, [{"version": 3, "at": _AT, "by": "worker", "reason": "better"}]),
    "CountStates": (
        None,
        {
            "given": 1200,
            "filled": 597,
            "stale": 0,
            "pending": 0,
            "withheld": 2,
            "no_value": 0,
            "out_of_domain": 1,
            "withdrawn": 0,
            "failed": 0,
            "without_input": 0,
        },
    ),
    "Predict": (_INPUTS, _OUTPUTS),
    "PredictImputation": (_INPUTS, _OUTPUTS),
    "PredictDocuments": (
        {"filter": {"y": {"$exists": False}}, "limit": 10},
        {"documents": [{"document": _ID, "value": "cat", "confidence": 0.98}], "version": 3},
    ),
    "SetTraffic": (
        {"canary": {"version": 4, "share": 0.1}, "shadow": {"version": 5}},
        _TRAFFIC,
    ),
    "ShowTraffic": (None, _TRAFFIC),
    "SetForm": ({"form": "auto", "tolerance": 0.02}, _FORM),
    "ShowForm": (None, _FORM),
    "StreamPrediction": (
        {"input": "Once upon a time"},
        'event: piece\ndata: "there"\n\nevent: end\ndata: {"pieces": 1, "version": 3}\n\n',
    ),
    "PredictLater": ({"filter": {"y": {"$exists": False}}}, {"job": "7c0e7d0a1b2c"}),
    "ListOutputs": (
        None,
        {"rows": [{"value": "cat", "confidence": 0.98}], "next": 1, "state": "running"},
    ),
    "ExplainPrediction": (
        {"input": [0.1, 0.2]},
        {
            "given": {"type": "Tensor", "dtype": "float32", "shape": [2], "value": [0.1, 0.2]},
            "returned": {"type": "Tensor", "dtype": "float32", "shape": [2], "value": [2.1, -1.8]},
            "value": "cat",
            "confidence": 0.98,
            "seconds": {"preprocess": 0.0001, "forward": 0.0004, "postprocess": 0.0001},
            "model": "my_model",
            "version": 3,
        },
    ),
    "ListJobs": (None, [_JOB]),
    "ShowJob": (None, _JOB),
    "CancelJob": (None, {**_JOB, "cancel": True}),
    "ListRuns": (None, [{"id": "b1f2", "imputation": "documents/y_from_x", "status": "succeeded"}]),
    "ShowRun": (
        None,
        {"id": "b1f2", "status": "succeeded", "epochs": [{"epoch": 1, "loss": 0.4}], "steps": []},
    ),
    "Highscores": (
        None,
        [{"rank": 1, "imputation": "documents/y_from_x", "metric": "accuracy", "value": 0.97}],
    ),
    "ShowStatus": (None, {"database": "main", "version": "0.1.0", "workers": [], "jobs": {}}),
    "ListAudit": (None, [_ENTRY]),
    "ListTokens": (None, [_TOKEN]),
    "CreateToken": ({"role": "writer", "seconds": 86400}, {"token": "sd_k3x90a1b_...", **_TOKEN}),
    "RevokeToken": (None, {**_TOKEN, "revoked": True}),
}
