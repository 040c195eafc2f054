"""The source that is kept of the first seed's classes can be pasted elsewhere, and works there."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json
import torch
from superduper.fields.sealing import seal

SCALE = 2.0
LABELS = ["cat", "dog", "bird"]

def scaled(x):
    return x * SCALE

class MyTarget:
    def __init__(self, labels):
        self.lookup = dict(zip(labels, range(len(labels))))

    def __call__(self, label):
        return torch.tensor(self.lookup[label])

class Base(torch.nn.Module):
    def forward(self, x):
        return self.layer(scaled(x))

class MyModel(Base):
    def __init__(self, labels, dim):
        super().__init__()
        self.labels = labels
        self.layer = torch.nn.Linear(dim, len(self.labels))

    def postprocess(self, output):
        estimate = output.topk(1)[1].item()
        return self.labels[estimate]

def accuracy(x, y):
    return x == y

things = {"target": MyTarget(LABELS), "model": MyModel(LABELS, 4), "metric": accuracy}
print(json.dumps({name: seal({"object": thing}).source for name, thing in things.items()}))
"""

CHILD = """
import json, sys
def run(text):
    names = {"__name__": "pasted"}
    exec(text, names)
    return names
texts = json.load(sys.stdin)
target, model, metric = (run(texts[name]) for name in ("target", "model", "metric"))
labels = ["cat", "dog", "bird"]
made = model["MyModel"](labels, 4)
torch = model["torch"]
with torch.no_grad():
    made.layer.weight.zero_()
    made.layer.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    output = made(torch.ones(4))
    made.layer.weight.fill_(1.0)
    scaled = made(torch.ones(4))[0].item()
print(target["MyTarget"](labels)("bird").item(), made.postprocess(output), scaled,
      metric["accuracy"](1, 1))
"""


def test_it_can_be_pasted(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    sealed = subprocess.run(
        [sys.executable, str(script)], check=True, capture_output=True, text=True
    )
    assert "LABELS" not in json.loads(sealed.stdout)["model"], "what it does not need is left out"
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=sealed.stdout, capture_output=True, text=True
    )
    assert done.stdout.split() == ["2", "dog", "8.0", "True"], done.stderr
