"""What the behaviour tests register: seed 000's example with its slips mended, and friends."""

import torch

LABELS = ["cat", "dog"]
DIM = 8


class MyTarget:
    def __init__(self, labels: list[str]) -> None:
        self.lookup = dict(zip(labels, range(len(labels)), strict=True))

    def __call__(self, label: str) -> torch.Tensor:
        return torch.tensor(self.lookup[label])


class MyModel(torch.nn.Module):
    def __init__(self, labels: list[str], dim: int) -> None:
        super().__init__()
        self.labels = labels
        self.layer = torch.nn.Linear(dim, len(self.labels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def postprocess(self, output: torch.Tensor) -> str:
        return self.labels[output.topk(1)[1].item()]


def accuracy(x: str, y: str) -> bool:
    return x == y


def documents(count: int, labelled: int, seed: int = 0) -> list[dict]:
    """Separable vectors; the first `labelled` of them know their label."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        document = {"_id": i, "x": torch.randn(DIM, generator=generator) + 3 * (i % 2)}
        if i < labelled:
            document["y"] = LABELS[i % 2]
        made.append(document)
    return made


def register(docs) -> None:
    torch.manual_seed(0)
    docs.create_function("my_target", MyTarget(LABELS))
    docs.create_model("my_model", MyModel(LABELS, DIM))
    docs.create_loss("classification_loss", torch.nn.CrossEntropyLoss())
    docs.create_metric("accuracy", accuracy)


SETTINGS = {
    "model": "my_model",
    "model_key": "x",
    "target": "my_target",
    "target_key": "y",
    "metrics": ["accuracy"],
    "loss": "classification_loss",
    "max_epochs": 20,
    "lr": 0.05,
    "seed": 0,
}
