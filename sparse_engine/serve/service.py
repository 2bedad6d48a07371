"""What the routes share: the models by name, the state of the traffic, the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from sparse_engine.serve.compute import Line
from sparse_engine.serve.metrics import Metrics
from sparse_engine.serve.middleware import Traffic
from sparse_engine.serve.replies import Refusal, shown
from sparse_engine.tasks import Embedder, Generator, Task

MAX_ITEMS = 128

T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Served:
    """A model under its name."""

    name: str
    task: Task
    line: Line

    @property
    def embedder(self) -> Embedder:
        """The model, if it gives embeddings; Refusal if it does not."""
        return self._as(Embedder)

    @property
    def generator(self) -> Generator:
        """The model, if it goes on from a prompt; Refusal if it does not."""
        return self._as(Generator)

    def _as(self, kind: type[T]) -> T:
        if not isinstance(self.task, kind):
            raise Refusal(
                400, f"model {self.name} does {self.task.task}, this route needs {kind.task}"
            )
        return self.task


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
