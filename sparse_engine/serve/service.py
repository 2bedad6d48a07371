"""What the routes share: the models by name, the state of the traffic, the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparse_engine.serve.compute import Line
from sparse_engine.serve.metrics import Metrics
from sparse_engine.serve.middleware import Traffic
from sparse_engine.serve.replies import Refusal, shown
from sparse_engine.tasks import Embedder

MAX_ITEMS = 128


@dataclass(frozen=True)
class Served:
    """A model under its name."""

    name: str
    embedder: Embedder
    line: Line


@dataclass(frozen=True)
class Service:
    """All of an app."""

    models: dict[str, Served]
    traffic: Traffic
    metrics: Metrics
    started: int
    """Seconds since 1970."""

    def find(self, name: Any) -> Served:
        """The model called `name`; the only one when `name` is None. Refusal when there is none."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name is None:
            raise Refusal(400, f"model is missing: give one of {', '.join(self.models)}")
        if not isinstance(name, str) or name not in self.models:
            reason = f"model {shown(name)} is not served here: use {', '.join(self.models)}"
            raise Refusal(404, reason, "model_not_found")
        return self.models[name]
