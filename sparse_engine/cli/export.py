"""sparse-engine export: a cut model as a folder that transformers loads by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_engine.cli.common import progress_bar, remark, say


def export(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or id, or a package.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
) -> None:
    """Write a model from which heads or units were removed so that transformers loads it.

    transformers builds all layers alike. Options such as intermediate_size change where what is
    left is even. Elsewhere zeros take the place of what was removed, and the line that is printed
    says so. The outputs stay the same.

    Examples:

      sparse-engine export pruned ./plain

      sparse-engine export package ./plain  # the weights of a package, dense
    """
    from sparse_engine.convert.sparsify import densify_
    from sparse_engine.io import export_transformers, load_pretrained
    from sparse_engine.io.folder import check_free

    check_free(out)
    with progress_bar("loading") as bar:
        loaded, folder = load_pretrained(model, bar)
    densify_(loaded)
    with progress_bar("writing") as bar:
        report = export_transformers(loaded, out, folder, bar)
    say(str(report))
    remark(f"wrote {out}; next: transformers.AutoModel.from_pretrained({str(out)!r})")
