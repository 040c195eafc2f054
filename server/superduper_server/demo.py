"""The main job on real data: handwritten digits whose missing labels fill themselves.

`superduper demo` (or `scripts/demo`) runs this file as an ordinary script: its classes live in
`__main__`, as in a script of your own. With `--keep` store, worker and server stay up at the end.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
from sklearn.datasets import load_digits

import superduper
from superduper.store.folder import Folder

T = TypeVar("T")
LABELLED = 1_200
WANTED_ACCURACY = 0.95
DEADLINE_SECONDS = 60
MARK = "made-by-the-demo"

PLAIN_INSERT = """
import sys, time, pymongo
from bson import Binary
address, data = sys.argv[1], bytes.fromhex(sys.argv[2])
image = {"dtype": "float32", "shape": [8, 8], "data": Binary(data), "kind": "torch"}
digits = pymongo.MongoClient(address)["demo"]["digits"]
digits.insert_one({"_id": "from plain pymongo", "image": image})
print(time.time())
"""


def say(text: str) -> None:
    """One line of the demo's story."""
    print(text, flush=True)


class Target:
    """From a label to the class number that the loss wants."""

    def __init__(self, labels: list[str]) -> None:
        self.lookup = {label: index for index, label in enumerate(labels)}

    def __call__(self, label: str) -> torch.Tensor:
        return torch.tensor(self.lookup[label])


class Digits(torch.nn.Module):
    """A small convolutional network, with what comes before and after it."""

    def __init__(self, labels: list[str]) -> None:
        super().__init__()
        self.labels = labels
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 32, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Dropout(0.25),
            torch.nn.Linear(32 * 4 * 4, len(labels)),
        )

    def preprocess(self, image: torch.Tensor) -> torch.Tensor:
        """One image as the network takes it."""
        return image.float().unsqueeze(0) / 16

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of the labels for a batch."""
        return self.layers(images)  # type: ignore[no-any-return]

    def postprocess(self, output: torch.Tensor) -> str:
        """The label with the highest score."""
        return self.labels[int(output.topk(1)[1].item())]

    def confidence(self, output: torch.Tensor) -> float:
        """The highest label's share."""
        return float(output.softmax(-1).max())


def accuracy(predicted: str, true: str) -> bool:
    """Whether a prediction is right."""
    return predicted == true


def load(digits: Any) -> dict[int, str]:
    """Insert all images, 1,200 of them with their label; answers the labels held back."""
    images, labels = load_digits(return_X_y=True)
    # The set is ordered by who wrote the digits: a fixed shuffle, so that all writers are in both.
    order = numpy.random.default_rng(0).permutation(len(images))
    documents, held_back = [], {}
    for number, (image, label) in enumerate(zip(images[order], labels[order], strict=True)):
        document = {"_id": number, "image": torch.tensor(image).float().reshape(8, 8)}
        if number < LABELLED:
            document["label"] = str(label)
        else:
            held_back[number] = str(label)
        documents.append(document)
    digits.insert_many(documents)
    return held_back


def register(digits: Any) -> Any:
    """Register the parts and declare the imputation."""
    labels = [str(digit) for digit in range(10)]
    digits.create_function("digit_target", Target(labels))
    digits.create_model("digit_model", Digits(labels))
    digits.create_loss("classification_loss", torch.nn.CrossEntropyLoss())
    digits.create_metric("accuracy", accuracy)
    return digits.create_imputation(
        model="digit_model",
        model_key="image",
        target="digit_target",
        target_key="label",
        metrics=["accuracy"],
        loss="classification_loss",
        lr=3e-3,
        max_epochs=30,
        seed=0,
    )


def until(find: Callable[[], T | None], what: str) -> T:
    """Wait for something to be there, with a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (found := find()) is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"gave up waiting for {what} after {DEADLINE_SECONDS} s")
        time.sleep(0.1)
    return found


def insert_from_elsewhere(digits: Any, address: str) -> None:
    """A process that knows nothing of us inserts an image; its label appears."""
    image: torch.Tensor = digits.find_one({"_id": LABELLED})["image"]
    data = image.numpy().tobytes().hex()
    command = [sys.executable, "-c", PLAIN_INSERT, address, data]
    inserted = float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    document = until(
        lambda: digits.find_one({"_id": "from plain pymongo", "label": {"$exists": True}}),
        "the new document's label",
    )
    waited = document["_fill"]["label"]["at"] / 1000 - inserted
    say(f"   filled with {document['label']!r} {max(0.0, waited) * 1000:.0f} ms after the insert")


def predict_over_rest(url: str, token: str, digits: Any) -> None:
    """Ask the server for a prediction as any HTTP client would."""
    image = digits.find_one({"_id": LABELLED})["image"].tolist()
    request = urllib.request.Request(
        f"{url}/v1/collections/digits/models/digit_model/predict",
        data=json.dumps({"inputs": [image]}).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
        say(f"   POST /v1/collections/digits/models/digit_model/predict → {answer.read().decode()}")


def begin_anew(path: Path) -> None:
    """An empty folder for the demo; what an earlier one left there is removed, and nothing else."""
    mark = path / MARK
    if path.exists() and any(path.iterdir()):
        if not mark.exists():
            raise SystemExit(f"{path} holds files that are not the demo's: choose another --path")
        if Folder(path).has_keeper():
            raise SystemExit(f"a demo runs in {path}: stop that one, or choose another --path")
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    mark.touch()


def start(path: Path) -> tuple["subprocess.Popen[str]", dict[str, str]]:
    """Store, worker and server in one folder; answers the process and its ready line."""
    command = [sys.executable, "-m", "superduper_server.cli", "up", "--path", str(path)]
    command += ["--database", "demo", "--port", "0", "--json"]
    with (path / "up.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    assert process.stdout is not None  # it was asked for
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"`superduper up` ended with {process.wait()}: see {path}/up.log")
    return process, json.loads(line)


def story(path: Path, ready: dict[str, str]) -> None:
    """The demo, step by step."""
    client = superduper.connect(f"embedded:{path}")
    digits = client["demo"]["digits"]
    say("2. 1,797 handwritten digits go in, 1,200 of them with their label")
    held_back = load(digits)
    say("3. A model, a target, a loss and a metric are registered; the imputation is declared")
    imputation = register(digits)
    say("4. A worker trains it, then fills the documents that lack a label")
    imputation.wait(timeout=300)
    say(f"   {imputation!r}")
    filled = digits.find({"_id": {"$in": list(held_back)}}, {"label": 1})
    right = sum(document.get("label") == held_back[document["_id"]] for document in filled)
    accuracy = right / len(held_back)
    say(f"   {len(held_back)} missing labels: {accuracy:.1%} filled as the held-back truth has it")
    if accuracy < WANTED_ACCURACY:
        raise SystemExit(f"that is below {WANTED_ACCURACY:.0%}: something is wrong")
    say("5. Another process inserts an image with plain pymongo")
    insert_from_elsewhere(digits, ready["address"])
    say("6. The same model answers over REST")
    predict_over_rest(ready["url"], ready["token"], digits)
    client.close()


def where_next(path: Path, ready: dict[str, str]) -> None:
    """What to look at while everything is up."""
    say(f"\nStill up. API and its documentation: {ready['url']}/docs")
    say(f"  token      {ready['token']}")
    say(f"  database   {ready['address']} (any MongoDB client)")
    say(f"  status     superduper status --uri embedded:{path}")
    say("Ctrl-C stops it.")


def main() -> None:
    """Run the demo in a local folder."""
    parser = argparse.ArgumentParser(prog="superduper demo", description=__doc__)
    parser.add_argument("--path", type=Path, default=Path("demo-data"), help="the folder to use")
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    options = parser.parse_args()
    began = time.monotonic()
    begin_anew(options.path)
    say(f"1. Store, worker and server start in {options.path}")
    process, ready = start(options.path.resolve())
    try:
        story(options.path.resolve(), ready)
        say(f"Done in {time.monotonic() - began:.0f} s.")
        if options.keep:
            where_next(options.path, ready)
            process.wait()
        else:
            say("Next: scripts/demo --keep leaves it running; docs/quickstart.md explains it.")
    except KeyboardInterrupt:
        say("Stopping.")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


if __name__ == "__main__":
    main()
