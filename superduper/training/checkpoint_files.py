"""The files that a checkpoint consists of. Needs no torch: the database's side uses it too."""

import json
from collections.abc import Mapping
from typing import Any

PREFIX = "checkpoint-"
PARTS = ("state.json", "tensors.safetensors")
MANIFEST = "manifest.json"


def manifest(step: int, sha256: Mapping[str, str], *, lasting: bool = False) -> bytes:
    """What a checkpoint's manifest says: its step, the hashes of its parts, whether it stays."""
    content: dict[str, Any] = {"step": step, "sha256": dict(sha256), "lasting": lasting}
    return json.dumps(content).encode()
