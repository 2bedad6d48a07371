"""sparse-engine inspect and verify: what a package or a checkpoint holds, and if it is intact."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sparse_engine.cli.common import progress_bar, say
from sparse_engine.errors import UsageError

Package = Annotated[Path, typer.Argument(help="A package, as `convert` writes it.")]
Output = Annotated[str, typer.Option("-o", "--output", help="table or json.")]


def inspect(
    folder: Annotated[Path, typer.Argument(help="A package, or a checkpoint that has zeros.")],
    output: Output = "table",
) -> None:
    """Show what a package holds: sizes, sparsity, format, kernel and measured choice of each layer.

    Of a checkpoint, whoever pruned it, show the blocks that the zeros of each layer are made of:
    the largest block that is filled to 98 %, and N:M as kept of how many. Of both, the heads, units
    and other structures that remain, and the rows of a cut vocabulary.

    Examples:

      sparse-engine inspect package -o json

      sparse-engine inspect ./pruned-elsewhere  # next: sparse-engine convert
    """
    from sparse_engine.io.package import is_package

    if output not in ("table", "json"):
        raise UsageError(f"output {output!r}: use table or json")
    if not is_package(folder) and (folder / "config.json").is_file():
        _inspect_checkpoint(folder, output)
    else:
        _inspect_package(folder, output)


def _inspect_package(folder: Path, output: str) -> None:
    from sparse_engine.io import inspect as read
    from sparse_engine.reporting.tables import heading, layer_tables, show

    found = read(folder)
    if output == "json":
        print(json.dumps(found.to_dict(), indent=1))
    else:
        show(heading(found.title()), *layer_tables(found.rows))
        say("\n".join((found.totals(), found.kernels())))


def _inspect_checkpoint(folder: Path, output: str) -> None:
    from sparse_engine.cli.prune_tables import pattern_table
    from sparse_engine.io import load_pretrained
    from sparse_engine.io.checkpoint import removed_from
    from sparse_engine.io.foreign import describe
    from sparse_engine.io.removed import describe as describe_removed
    from sparse_engine.pruning import find_patterns
    from sparse_engine.reporting.tables import heading, show

    title, removed = describe(folder), removed_from(folder)
    with progress_bar("loading") as report:
        model, _ = load_pretrained(folder, report)
    with progress_bar("measuring") as report:
        found = find_patterns(model, report)
    if output == "json":
        gone = {"removed": [asdict(site) for site in removed]} if removed else {}
        print(json.dumps({"title": title, **found.to_dict(), **gone}, indent=1))
    else:
        show(heading(title), pattern_table(found))
        say(f"{found.summary}{describe_removed(removed)}")


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
