"""sparse-engine inspect and verify: the contents of a package, and whether it is intact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sparse_engine.cli.common import progress_bar, say
from sparse_engine.errors import UsageError

Package = Annotated[Path, typer.Argument(help="A package, as `convert` writes it.")]
Output = Annotated[str, typer.Option("-o", "--output", help="table or json.")]


def inspect(package: Package, output: Output = "table") -> None:
    """Show what a package holds: sizes, sparsity, format, kernel and measured choice of each layer.

    Example:

      sparse-engine inspect package -o json
    """
    from sparse_engine.cli.tables import heading, layer_tables, show
    from sparse_engine.io import inspect as read

    if output not in ("table", "json"):
        raise UsageError(f"output {output!r}: use table or json")
    found = read(package)
    if output == "json":
        print(json.dumps(found.to_dict(), indent=1))
    else:
        show(heading(found.title()), *layer_tables(found.rows))
        say("\n".join((found.totals(), found.kernels())))


def verify(
    package: Package,
    against: Annotated[
        str | None, typer.Option(help="Also compare outputs with this model folder.")
    ] = None,
) -> None:
    """Check every byte and every index of a package; exit code 3 if it is damaged, 5 if it differs.

    Example:

      sparse-engine verify package --against pruned
    """
    from sparse_engine.io import verify as check

    with progress_bar("verifying") as report:
        say(str(check(package, against=against, progress=report)))
