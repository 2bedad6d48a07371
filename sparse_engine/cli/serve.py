"""sparse-engine serve: a package over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_engine.cli.common import set_threads


def serve(
    package: Annotated[Path, typer.Argument(help="A package, as `convert` writes it.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Model name; default: the folder's name.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for a GPU.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Cores to use.")] = None,
) -> None:
    """Serve a package: POST /v1/embeddings, POST /v2/models/NAME/infer, /health/*, /metrics.

    Ctrl-C lets running requests finish, then exits with 0.

    Example:

      sparse-engine serve package --port 8000

      curl localhost:8000/v1/embeddings -H 'content-type: application/json' -d '{"input": "hello"}'
    """
    from sparse_engine.serve import run

    set_threads(threads)
    run(package, host=host, port=port, name=name, threads=threads, device=device)
