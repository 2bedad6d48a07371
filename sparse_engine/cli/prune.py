"""sparse-engine prune: a dense model in, the same model with zeros out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparse_engine.cli.common import progress_bar, remark, say, set_threads
from sparse_engine.cli.recipe import (
    check_conflicts,
    options_of,
    overrides_of,
    use_recipe,
    warn_changes,
)


def prune(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Hugging Face folder or id, or a package.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    sparsity: Annotated[
        float | None, typer.Option(help="Fraction of zeros, e.g. 0.9; 2:4 implies its own.")
    ] = None,
    granularity: Annotated[
        str, typer.Option(help="element, 4x1 (rows x cols), 1xall, 2:4.")
    ] = "element",
    criterion: Annotated[
        str | None,
        typer.Option(
            help="random, magnitude, coupled, activation, wanda, taylor, snip, fisher, sparsegpt, "
            "obs."
        ),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Text file, one text a line: keeps far more quality.")
    ] = None,
    recovery: Annotated[
        str | None, typer.Option(help="none, bias, least_squares, blocks. Default: as possible.")
    ] = None,
    allocator: Annotated[
        str,
        typer.Option(help="uniform: each layer alike; erk: by shape; owl; lamp: layers compete."),
    ] = "uniform",
    report: Annotated[
        Path | None, typer.Option(help="HTML page to write: charts, density maps, tables.")
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Text file; its lines before and after, for --report.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration texts to use.")] = 512,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of a calibration text.")] = 128,
    seed: Annotated[int, typer.Option(help="For random choices.")] = 0,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream", help="Keep one block in memory. Default: if memory is short."
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--target", help="Layers to prune: a name, a glob, or re:REGEX; repeatable."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Layers to leave, likewise; repeatable.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of these options, or a folder that prune wrote: repeats its run.",
            is_eager=True,
            callback=use_recipe,
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Cores to use.")] = None,
) -> None:
    """Set weights of a model's linear layers to zero and write a Hugging Face folder.

    With --calibration the default is sparsegpt scores and a least-squares refit, which keep
    the model close to the dense one; without it only magnitude and random scores are possible.
    Embeddings, norms, poolers and heads are left alone. For a model that translates or summarises a
    line may be a text, a tab and its answer. Next: sparse-engine convert.

    Examples:

      sparse-engine prune ./all-MiniLM-L6-v2 pruned --sparsity 0.9 --calibration texts.txt

      sparse-engine prune ./model pruned --sparsity 0.8 --granularity 4x1 --calibration texts.txt

      sparse-engine prune ./model pruned --sparsity 0.8 --report report.html --examples lines.txt

      sparse-engine prune ./model pruned --criterion "magnitude(sigma=1.5)"

      sparse-engine prune ./model again --recipe pruned  # repeats the run that wrote ./pruned

      sparse-engine prune ./model pruned --sparsity 0.8 --target "*.query" --ignore encoder.layer.0

      sparse-engine prune ./llama-8b pruned --sparsity 0.5 --criterion wanda --stream
      --calibration texts.txt  # run it again after an interrupt: it continues
    """
    from sparse_engine.cli import streamed
    from sparse_engine.cli.reports import compare, read_examples
    from sparse_engine.cli.tables import prune_tables, show
    from sparse_engine.convert.sparsify import densify_
    from sparse_engine.io import load_pretrained, save_checkpoint
    from sparse_engine.io.folder import check_free
    from sparse_engine.pruning import prune as prune_model
    from sparse_engine.pruning.method import make_method
    from sparse_engine.pruning.plan import Selection
    from sparse_engine.text.calibration import calibration_batches
    from sparse_engine.text.tokenizer import load_tokenizer, read_texts

    check_conflicts(ctx)
    set_threads(threads)
    check_free(out)
    example_texts = read_examples(report, examples)
    criterion = criterion or ("sparsegpt" if calibration else "magnitude")
    recovery = recovery or ("least_squares" if calibration else "none")
    # Wrong options are refused before the model is loaded.
    overrides = overrides_of(ctx)
    make_method(
        sparsity, granularity, criterion, recovery, allocator, calibration is not None, overrides
    )
    Selection.of(targets or (), ignore or ())
    texts = read_texts(calibration)[:samples] if calibration else None
    options: dict[str, Any] = {
        "sparsity": sparsity,
        "granularity": granularity,
        "criterion": criterion,
        "recovery": recovery,
        "allocator": allocator,
        "seed": seed,
        "targets": targets or (),
        "ignore": ignore or (),
        "overrides": overrides,
    }
    if streamed.chosen(stream, model, example_texts):
        options["recipe"] = options_of(ctx)
        result = streamed.prune_streamed(model, out, texts, max_length, options)
    else:
        with progress_bar("loading") as bar:
            loaded, folder = load_pretrained(model, bar)
        densify_(loaded)
        batches = None
        if texts is not None:
            batches = calibration_batches(texts, load_tokenizer(folder), loaded, max_length)
        comparison = compare(loaded, folder, example_texts)
        with progress_bar("pruning") as bar:
            result = prune_model(loaded, **options, calibration=batches, progress=bar)
        if comparison is not None:
            result.examples = comparison.examples()
        result.recipe = {**options_of(ctx), **result.recipe}
        with progress_bar("writing") as bar:
            save_checkpoint(loaded, out, folder, result.to_dict(), bar)
    if report is not None:
        result.to_html(report, f"{Path(model).name}, pruned")
    show(*prune_tables(result))
    say(result.summary)
    warn_changes(ctx, result.calibration)
    if texts is None:
        remark("no --calibration was given: expect much lower quality", "yellow")
    remark(f"wrote {out}; next: sparse-engine convert {out} PACKAGE")
