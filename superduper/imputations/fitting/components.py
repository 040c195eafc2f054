"""The registered components of a fit, as its child gets them: sealed, with their signed records."""

from typing import Any

from superduper.imputations.imputation import ImputationRecord
from superduper.store.component import Component
from superduper.store.registry import Registry

# Components of which there may be several, by the name that their pins have.
_SEVERAL = {"metrics": "metric", "optimizers": "optimizer", "policies": "policy"}


class FitComponents:
    """What an imputation names, in the versions that were pinned when it was declared."""

    def __init__(self, registry: Registry, record: ImputationRecord) -> None:
        self.registry = registry
        self.collection = record.collection
        self.spec = record.spec
        self.pins = record.spec["pins"]
        self.fields = (record.input_paths, record.target_paths, record.hidden_paths)

    def payloads(self) -> dict[str, Any]:
        """All of them, by what they are in the fit; None or nothing where there is none."""
        return {
            "model": self.model(self.pins["model"]),
            "loss": self._optional("loss", self.spec["loss"]),
            "trainer": self._optional("trainer", (self.spec.get("trainer") or {}).get("name")),
            "target": self._target(),
            **{key: self._several(kind, key) for key, kind in _SEVERAL.items()},
        }

    def model(self, version: int) -> dict[str, Any]:
        """A version of the model."""
        return self._payload("model", self.spec["model"], version)

    def made_by(self) -> dict[str, Any]:
        """What the records of a fit are made by, beside the documents."""
        makers = [self._component("model", self.spec["model"], self.pins["model"])]
        target = self.pins.get("target")
        if target is not None:
            makers.append(self._component(target["kind"], self.spec["target"], target["version"]))
        components = [[maker.artifact, maker.weights] for maker in makers]
        return {"components": components, "fields": self.fields}

    def _optional(self, kind: str, name: str | None) -> dict[str, Any] | None:
        return None if name is None else self._payload(kind, name, self.pins[kind])

    def _several(self, kind: str, key: str) -> dict[str, Any]:
        pins = self.pins.get(key) or {}
        return {name: self._payload(kind, name, version) for name, version in pins.items()}

    def _target(self) -> dict[str, Any] | None:
        pin = self.pins.get("target")
        if pin is None:
            return None
        payload = self._payload(pin["kind"], self.spec["target"], pin["version"])
        return {"kind": pin["kind"], "payload": payload}

    def _payload(self, kind: str, name: str, version: int) -> dict[str, Any]:
        return self.registry.payload(self._component(kind, name, version))

    def _component(self, kind: str, name: str, version: int) -> Component:
        return self.registry.get(self.collection, kind, name, version)
