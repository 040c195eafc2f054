"""Our server beside others: `python -m benchmarks.serving A --rivals litserve mosec`; wants `wrk`.

The rivals have environments of their own, made at first use (versions: rivals.txt); without names
after `--rivals` all are asked. All servers are up at the same time and are asked in turn, round by
round; each gets one JSON row of 64 floats a request, and must answer what the model says here. With
`--forms bf16 int8` ours is there once more in each of these, if it agrees within `TOLERANCE` on
`COMPARED` random inputs. `bodies` instead of a model compares forms of one large row on our own
server.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

import superduper_client
from benchmarks.place import store, until
from benchmarks.serving.models import PICTURE, ROW, SIZES, Mlp
from benchmarks.serving.processes import HERE, Served, measure, started
from benchmarks.serving.rivals import RIVALS, rival

CONNECTIONS = (1, 16, 64)
COMPARED, TOLERANCE = 100, 0.05


@contextlib.contextmanager
def ours(model: str, form: str = "plain") -> Iterator[Served]:
    """Our server with tokens, on an embedded store."""
    with store() as client:
        command = [sys.executable, "-m", "superduper_server.cli", "serve", "--uri", client.address]
        command += ["--database", "bench", "--port", "0", "--json"]
        rate = {"SUPERDUPER_TOKEN_RATE": "1000000", "SUPERDUPER_TOKEN_AT_ONCE": "1000"}
        with started(command, subprocess.PIPE, **rate) as process:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            with superduper_client.connect(ready["url"], token=ready["token"]) as http:
                docs = http["bench"]["docs"]
                sizes = {**SIZES, **PICTURE}[model]
                docs.create_model("model", Mlp(sizes), sample=torch.zeros(sizes[0]))
                inputs = list(torch.randn(COMPARED, sizes[0]))
                told = docs.model("model").set_form(form, inputs, tolerance=TOLERANCE)
                if told["report"] is not None:
                    print(form, told["report"], flush=True)
            path = "/v1/collections/docs/models/model/predict"
            yield Served(process, ready["url"] + path, ready["token"])


def agrees(served: Served, model: str, tolerance: float) -> bool:
    """Whether it gives the model's own answer, within a part of the largest number; False if none.

    Raises AssertionError for another answer.
    """
    rows = served.answer()
    if rows is None:
        return False
    wanted = Mlp(SIZES[model])(torch.tensor([ROW])).detach()
    furthest = float((torch.tensor(rows).reshape(1, -1) - wanted).abs().max() / wanted.abs().max())
    assert furthest <= tolerance, (served.url, rows, wanted)
    return True


def run(
    model: str, rivals: list[str], forms: list[str], rounds: int, seconds: int
) -> dict[str, Any]:
    """Every server at every number of connections, in turn."""
    with contextlib.ExitStack() as stack:
        servers = {"superduper": stack.enter_context(ours(model))}
        for form in forms:
            servers[f"superduper {form}"] = stack.enter_context(ours(model, form))
        for name in rivals:
            servers[name] = stack.enter_context(rival(name, model))
        for name, served in servers.items():
            near = TOLERANCE if name.startswith("superduper ") else 1e-5
            until(lambda served=served, near=near: agrees(served, model, near), name, pause=0.5)
        for served in servers.values():
            measure(served, CONNECTIONS[-1], 3 * seconds)  # some compile what they run often
        rows: dict[tuple[str, int], list[dict[str, float]]] = {}
        for number in range(rounds):
            for connections in CONNECTIONS:
                order = list(servers)[number % len(servers) :] + list(servers)
                for name in dict.fromkeys(order):
                    row = measure(servers[name], connections, seconds)
                    rows.setdefault((name, connections), []).append(row)
                    print(name, connections, {k: round(v, 2) for k, v in row.items()}, flush=True)
        memory = {name: served.memory_mb() for name, served in servers.items()}
    medians = [
        {
            "server": name,
            "connections": connections,
            **{key: round(statistics.median(r[key] for r in found), 2) for key in found[0]},
        }
        for (name, connections), found in rows.items()
    ]
    raw = [{"server": n, "connections": c, "rounds": found} for (n, c), found in rows.items()]
    return {"model": model, "medians": medians, "memory_mb": memory, "raw": raw}


def run_bodies(rounds: int, seconds: int) -> dict[str, Any]:
    """Our server on one row of 12,288 floats, as JSON in both dialects and as a binary tensor."""
    width = PICTURE["picture"][0]
    numbers = [round(0.001 * n, 3) for n in range(width)]
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, width]}
    forms: dict[str, tuple[str, bytes, dict[str, str]]] = {
        "JSON": ("", json.dumps({"inputs": [numbers]}).encode(), {}),
        "JSON, V2": ("v2", json.dumps({"inputs": [{**tensor, "data": numbers}]}).encode(), {}),
        "binary, V2": (
            "v2",
            torch.tensor(numbers).numpy().tobytes(),
            {"Inference-Header-Content-Length": "0"},
        ),
    }
    rows: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    with ours("picture") as served:
        v2 = Served.of(served, served.url.partition("/v1/")[0] + "/v2/models/docs.model/infer")
        for _ in range(rounds):
            for form, (dialect, content, more) in forms.items():
                row = measure(v2 if dialect else served, 16, seconds, content, more)
                rows[form].append(row)
                print(form, {k: round(v, 2) for k, v in row.items()}, flush=True)
    medians = {
        form: {key: round(statistics.median(r[key] for r in found), 2) for key in found[0]}
        for form, found in rows.items()
    }
    return {"connections": 16, "floats": width, "medians": medians, "raw": rows}


def main() -> None:
    """Run, print and keep."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__)
    parser.add_argument("model", choices=[*SIZES, "bodies"])
    parser.add_argument("--rivals", nargs="*", choices=list(RIVALS), help="Others; all if unnamed.")
    parser.add_argument("--forms", nargs="*", default=[], help="Faster forms of ours, as well.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--small", action="store_true", help="See that it works; keeps nothing.")
    options = parser.parse_args()
    if options.small:
        options.rounds = options.seconds = 1
    began = time.monotonic()
    if options.model == "bodies":
        result = run_bodies(options.rounds, options.seconds)
    else:
        rivals = list(RIVALS) if options.rivals == [] else options.rivals or []
        result = run(options.model, rivals, options.forms, options.rounds, options.seconds)
    result |= {
        "command": "python -m benchmarks.serving " + " ".join(sys.argv[1:]),
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - began, 1),
        "load": [round(each, 1) for each in os.getloadavg()],
        "cores": os.cpu_count(),
    }
    if options.small:
        return
    text = json.dumps(result, indent=2) + "\n"
    (HERE.parent / "results" / f"serving_{options.model}.json").write_text(text)


if __name__ == "__main__":
    main()
