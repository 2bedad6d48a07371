"""Prometheus metrics of one app, in a registry of its own."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from torch import nn

from sparse_engine.nn import SparseLinear
from sparse_engine.serve.queue import RequestQueue
from sparse_engine.tasks import Task

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics that the routes and the middleware update; /metrics shows `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "se_requests_total", "Requests answered", ["route", "code"], registry=self.registry
        )
        self.seconds = Histogram(
            "se_request_seconds",
            "From the first byte to the answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.rows = Histogram(
            "se_batch_rows", "Inputs run at once", buckets=ROWS, registry=self.registry
        )
        self.depth = Gauge(
            "se_queue_depth", "Requests waiting or computing", ["model"], registry=self.registry
        )
        self.models = Gauge(
            "se_model_info",
            "1 for each model served",
            ["model", "format", "task", "pooling", "hidden"],
            registry=self.registry,
        )
        rss = Gauge("se_rss_bytes", "Resident memory", registry=self.registry)
        rss.set_function(rss_bytes)

    def add_model(self, name: str, task: Task, queue: RequestQueue) -> None:
        """Show a model and the length of its queue."""
        formats, info = ",".join(formats_of(task.model)), task.info
        labels = [info["task"], info.get("pooling", ""), info.get("hidden", "")]
        self.models.labels(name, formats, *labels).set(1)
        self.depth.labels(name).set_function(lambda: queue.length)


def formats_of(model: nn.Module) -> list[str]:
    """Formats of a model's sparse layers; ["dense"] where there are none."""
    found = {layer.format for layer in model.modules() if isinstance(layer, SparseLinear)}
    return sorted(found) or ["dense"]


def rss_bytes() -> float:
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
