"""sparse-engine convert: a model with zeros in, a package that runs fast out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from sparse_engine.cli import streamed
from sparse_engine.cli.common import progress_bar, remark, say, set_threads, split


def convert(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or id, or a package.")],
    out: Annotated[Path, typer.Argument(help="Package folder to write; must not exist.")],
    format: Annotated[
        str, typer.Option(help="auto (measured), csr, bsr:RxC, bitmask, nm:K:M, sellp, dense.")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Dtype of the weights: float32, bfloat16, int8.")
    ] = "float32",
    tokens: Annotated[
        str, typer.Option(help="Tokens of a call (batch x length) that auto times.")
    ] = "1,128",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare outputs with the dense model.")
    ] = False,
    stream: streamed.Stream = None,
    threads: Annotated[int | None, typer.Option(help="Cores to use.")] = None,
) -> None:
    """Store a pruned model's linear layers sparse and write a package for load, bench and serve.

    auto times the formats that fit each layer on this machine, dense included, and selects the
    smallest within 10 % of the fastest. The package records the choice and its timings
    (sparse-engine inspect).

    Examples:

      sparse-engine convert pruned package --verify

      sparse-engine convert pruned package --format bsr:4x1 --dtype bfloat16

      sparse-engine convert pruned package --dtype int8 --verify  # prints the error of int8

      sparse-engine convert ./llama-8b-pruned package --format csr --stream

      sparse-engine convert package again  # times formats again, on this machine
    """
    from sparse_engine.config import SparseConfig
    from sparse_engine.convert.sparsify import densify_, sparsify_
    from sparse_engine.io import load_pretrained, save
    from sparse_engine.io import verify as verify_package
    from sparse_engine.io.folder import check_free
    from sparse_engine.reporting.tables import layer_tables, reasons_table, show
    from sparse_engine.tasks import check_pooling

    set_threads(threads)
    check_free(out)
    config = SparseConfig(format=format, dtype=dtype, tokens=split(tokens, int, "--tokens"))
    if streamed.chosen(stream, model, "--verify runs" if verify else ""):
        result, folder = streamed.convert_streamed(model, out, config)
    else:
        with progress_bar("loading") as report:
            loaded, folder = load_pretrained(model, report)
        check_pooling(loaded, folder)
        densify_(loaded)
        with progress_bar("converting") as report:
            result = sparsify_(loaded, config, progress=report)
        with progress_bar("writing") as report:
            save(loaded, out, report=result, source=folder, progress=report)
    show(*layer_tables(result.rows))
    if result.left:
        show(reasons_table("left", [(left.reason, left.name) for left in result.left]))
    say(result.summary)
    if result.native:
        say(result.native)
    if verify:
        try:
            with progress_bar("verifying") as report:
                say(str(verify_package(out, against=folder, progress=report)))
        except BaseException:  # a package that fails verification is removed
            shutil.rmtree(out, ignore_errors=True)
            raise
    remark(f"wrote {out}; next: sparse-engine bench model {out}")
