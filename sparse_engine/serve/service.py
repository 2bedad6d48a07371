"""State that the routes share: models by name, traffic counters, metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from sparse_engine.serve.messages import RequestError, shown
from sparse_engine.serve.metrics import Metrics
from sparse_engine.serve.middleware import Traffic
from sparse_engine.serve.queue import RequestQueue
from sparse_engine.tasks import Embedder, Generator, Task

MAX_ITEMS = 128

T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Served:
    """A model with its name and request queue."""

    name: str
    task: Task
    queue: RequestQueue

    @property
    def embedder(self) -> Embedder:
        """The model as an embedder; RequestError if it is none."""
        return self._as(Embedder)

    @property
    def generator(self) -> Generator:
        """The model as a text generator; RequestError if it is none."""
        return self._as(Generator)

    def _as(self, kind: type[T]) -> T:
        if not isinstance(self.task, kind):
            raise RequestError(
                400, f"model {self.name} does {self.task.task}, this route needs {kind.task}"
            )
        return self.task


@dataclass(frozen=True)
class Service:
    """Models, traffic and metrics of an app."""

    models: dict[str, Served]
    traffic: Traffic
    metrics: Metrics
    started: int
    """Seconds since 1970."""

    def find(self, name: Any) -> Served:
        """The model called `name`; the only one when `name` is None. RequestError when there is
        none.
        """
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name is None:
            raise RequestError(400, f"model is missing: give one of {', '.join(self.models)}")
        if not isinstance(name, str) or name not in self.models:
            reason = f"model {shown(name)} is not served here: use {', '.join(self.models)}"
            raise RequestError(404, reason, "model_not_found")
        return self.models[name]
