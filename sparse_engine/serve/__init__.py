"""Serve a model over HTTP: OpenAI embeddings and completions, and the Open Inference Protocol.

FastAPI, uvicorn, prometheus-client and tokenizers come with `pip install sparse-engine[serve]`.
They are imported on first use: `import sparse_engine` does not need them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_engine.serve.needs import need
from sparse_engine.tasks import Embedder, InputError, Task

if TYPE_CHECKING:
    from fastapi import FastAPI

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "tokenizers")


def create_app(models: Mapping[str, Task], threads: int | None = None) -> FastAPI:
    """The ASGI app that serves `models` under their names; `threads` for torch and the kernels.

    Raises UsageError when a package is missing, when `models` is empty or a name has a slash.

    >>> app = create_app({"minilm": Embedder(se.load("out/"), "out/")})
    """
    need(*PACKAGES)
    from sparse_engine.serve.app import build

    return build(models, threads)


def run(
    folder: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    ready: Callable[[str], None] | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> None:
    """Serve the package in `folder` until SIGINT or SIGTERM, then finish what is in flight.

    port 0 chooses a free one. `name` is the model's name in requests, by default the folder's.
    `ready` is called with the URL as soon as requests are answered. `device`: as in `load`.
    Raises UsageError, before the model is loaded, when a package is missing or the port is taken.
    """
    need(*PACKAGES)
    from sparse_engine.serve.server import run_package

    run_package(folder, host, port, name, ready, threads, device)


__all__ = ["Embedder", "InputError", "create_app", "run"]
