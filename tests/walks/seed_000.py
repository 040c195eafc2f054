"""The example of seed 000 as people run it, with its slips mended and nothing else changed.

`torch.nn.CrossEntropyLoss`, `super().__init__()` and the constructors' arguments were the slips.
"""

import ast
from collections.abc import Iterator

IMPORTS = """\
import torch
import superduper
"""

DEFINITIONS = """\
class MyTarget:
    def __init__(self, labels):
        self.lookup = dict(zip(labels, range(len(labels))))

    def __call__(self, label):
        return torch.tensor(self.lookup[label])


class MyModel(torch.nn.Module):
    def __init__(self, labels, dim):
        super().__init__()
        self.labels = labels
        self.layer = torch.nn.Linear(dim, len(self.labels))

    def forward(self, x):
        return self.layer(x)

    def postprocess(self, output):
        estimate = output.topk(1)[1].item()
        return self.labels[estimate]


def accuracy(x, y):
    return x == y
"""

DOCUMENTS = """\
torch.manual_seed(0)
labels = ["cat", "dog"]
docs = superduper.connect()[NAME]["documents"]
for i in range(300):
    known = {"y": labels[i % 2]} if i < 200 else {}
    docs.insert_one({"_id": i, "x": torch.randn(8) + 2 * (-1) ** i, **known})
"""

CALLS = """\
docs.create_function('my_target', MyTarget(labels))
docs.create_model('my_model', MyModel(labels, 8))
docs.create_loss('classification_loss', torch.nn.CrossEntropyLoss())
docs.create_metric('accuracy', accuracy)
imputation = docs.create_imputation(
    model='my_model',
    model_key='x',
    target='my_target',
    target_key='y',
    metrics=['accuracy'],
    loss='classification_loss',
)
"""

WAIT = "imputation.wait()\n"

CHECK = """\
found = list(docs.find({"_id": {"$gte": 200}}))
print("filled", sum("y" in d for d in found))
print("right", sum(d.get("y") == labels[d["_id"] % 2] for d in found))
print("by", {d["_fill"]["y"]["imputation"] for d in found})
print(imputation)
"""


def script(database: str) -> str:
    """All of it as one program, its classes in `__main__`."""
    parts = [IMPORTS, DEFINITIONS, documents(database), CALLS, WAIT, CHECK]
    return "\n\n".join(parts)


def documents(database: str) -> str:
    """The documents go into a database of a given name."""
    return DOCUMENTS.replace("NAME", repr(database))


def lines(program: str) -> Iterator[str]:
    """A program as it is typed into a prompt: no empty lines but after a block."""
    written = program.splitlines()
    for node in ast.parse(program).body:
        yield from (line for line in written[node.lineno - 1 : node.end_lineno] if line.strip())
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.For):
            yield ""
