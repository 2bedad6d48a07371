"""sparse-engine prune: a dense model in, the same model with zeros out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_engine.cli import streamed
from sparse_engine.cli.common import progress_bar, remark, say, set_threads
from sparse_engine.cli.recipe import (
    check_conflicts,
    options_of,
    overrides_of,
    recorded,
    steps_of,
    use_recipe,
    warn_changes,
)


def prune(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Hugging Face folder or id, or a package.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    sparsity: Annotated[
        float | None,
        typer.Option(help="Fraction of zeros, or of heads, e.g. 0.9; 2:4 implies its own."),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            help="element, 4x1 (rows x cols), row, column, 2:4. Taken out: head, unit, layer, or "
            "head,unit. With a target: auto, or a list."
        ),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            help="random, magnitude, coupled, activation, wanda, taylor, snip, fisher, sparsegpt, "
            "obs; of structures also generator. Default: sparsegpt; heads and units: fisher; "
            "recurrent units and other structures: obs."
        ),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="FILE or FILE:SHARE, one text a line; repeat to mix. Or: default, none."),
    ] = None,
    recovery: Annotated[
        str | None, typer.Option(help="none, bias, least_squares, blocks. Default: as possible.")
    ] = None,
    allocator: Annotated[
        str | None,
        typer.Option(
            help="uniform: each layer alike; erk: by shape; owl: by outliers; sensitivity: by "
            "measured errors; controller: by a policy that learns; lamp, raw: layers compete. "
            "Default: uniform; heads and units by fisher: raw."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML page to write: charts, density maps, tables.")
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Text file; its lines before and after, for --report.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration texts to use.")] = 512,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of a calibration text.")] = 128,
    seed: Annotated[int, typer.Option(help="For random choices.")] = 0,
    stream: streamed.Stream = None,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layer", help="Layers to prune: a name, a glob, or re:REGEX; repeatable."),
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
    speedup: Annotated[
        float | None, typer.Option(help="Target: so many times faster than dense torch.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Target: milliseconds of a call.")
    ] = None,
    size_mb: Annotated[
        float | None, typer.Option(help="Target: megabytes after convert --format csr.")
    ] = None,
    params: Annotated[float | None, typer.Option(help="Target: parameters that are kept.")] = None,
    flops: Annotated[float | None, typer.Option(help="Target: operations for a token.")] = None,
    tokens: Annotated[
        int, typer.Option(help="Tokens of a call (batch x length), for targets of time.")
    ] = 128,
    dtype: Annotated[
        str, typer.Option(help="Dtype of the converted model, for targets.")
    ] = "float32",
    search_seconds: Annotated[
        float, typer.Option(help="How long a target's choice is improved by real output errors.")
    ] = 30.0,
) -> None:
    """Set weights of a model's linear layers to zero and write a Hugging Face folder.

    Structures such as heads are taken out, so that the weights become smaller.

    The default is sparsegpt scores and a least-squares refit on calibration texts. Heads and units
    are scored by fisher, which takes gradients, and compete with those of other layers (raw); units
    of recurrent networks are scored by obs. Texts like those that the model will read keep most of
    its quality. Without --calibration texts of Python's documentation are used; with --calibration
    none only magnitude and random scores are possible. Embeddings, norms, poolers and heads are
    left alone. For a model that translates or summarises a line may be a text, a tab and its
    answer. Next: sparse-engine convert.

    Examples:

      sparse-engine prune ./all-MiniLM-L6-v2 pruned --sparsity 0.9 --calibration texts.txt

      sparse-engine prune ./model pruned --sparsity 0.8 --granularity 4x1 --calibration \\
      own.txt:0.7 --calibration default:0.3

      sparse-engine prune ./model pruned --sparsity 0.8 --report report.html --examples lines.txt

      sparse-engine prune ./model pruned --criterion "magnitude(sigma=1.5)"

      sparse-engine prune ./model cut --granularity "head,unit(round_to=16)" --sparsity 0.25

      sparse-engine prune ./model cut --recipe steps.yaml  # structures, then blocks of the rest

      sparse-engine prune ./model again --recipe pruned  # repeats the run that wrote ./pruned

      sparse-engine prune ./model pruned --sparsity 0.8 --layer "*.query" --ignore encoder.layer.0

      sparse-engine prune ./model pruned --speedup 3 --tokens 128 --calibration texts.txt

      sparse-engine prune ./model small --granularity vocabulary --calibration corpus.txt

      sparse-engine prune ./llama-8b pruned --sparsity 0.5 --criterion wanda --stream
      --calibration texts.txt  # run it again after an interrupt: it continues
    """
    from sparse_engine.cli.prune_tables import prune_tables
    from sparse_engine.cli.reports import compare, read_examples
    from sparse_engine.cli.steps import arguments_of, is_recurrent
    from sparse_engine.cli.target import (
        check_details,
        convert_options,
        find_target,
        target_tables,
    )
    from sparse_engine.cli.vocabulary import cut, is_vocabulary
    from sparse_engine.convert.sparsify import densify_
    from sparse_engine.io import load_pretrained, save_checkpoint
    from sparse_engine.io.folder import check_free
    from sparse_engine.pruning import prune as prune_model
    from sparse_engine.reporting.tables import show
    from sparse_engine.text.calibration import Draw
    from sparse_engine.text.sources import find_sources

    check_conflicts(ctx)
    check_details(ctx)
    set_threads(threads)
    check_free(out)
    if is_vocabulary(granularity):
        cut(ctx, model, out, str(granularity), calibration or ["none"])
        return
    example_texts = read_examples(report, examples)
    goals = {
        "speedup": speedup,
        "latency_ms": latency_ms,
        "size_mb": size_mb,
        "params": params,
        "flops": flops,
    }
    target = find_target(goals, tokens, dtype, threads, search_seconds)
    # Wrong options are refused before the model is loaded.
    sources = find_sources(calibration or ["default"])
    values = {
        "sparsity": sparsity,
        "granularity": granularity,
        "criterion": criterion,
        "recovery": recovery,
        "allocator": allocator,
        "overrides": overrides_of(ctx),
        "seed": seed,
        "layers": layers or (),
        "ignore": ignore or (),
        "target": target,
    }
    arguments, found = arguments_of(values, steps_of(ctx), bool(sources))
    reads = any(step.method.needs_calibration for step in found)
    draw = Draw(sources, samples, max_length, seed) if reads else None
    batches, texts = None, None
    whole = streamed.needs_whole(found, bool(example_texts))
    if streamed.chosen(stream, model, whole):
        arguments["recipe"] = options_of(ctx)
        result, texts = streamed.prune_streamed(model, out, draw, arguments)
    else:
        with progress_bar("loading") as bar:
            loaded, folder = load_pretrained(model, bar)
        densify_(loaded)
        if is_recurrent(loaded):
            arguments, _ = arguments_of(values, steps_of(ctx), bool(sources), recurrent=True)
        if draw:
            batches, texts = draw.batches(folder, loaded)
        comparison = compare(loaded, folder, example_texts)
        with progress_bar("pruning") as bar:
            result = prune_model(loaded, **arguments, calibration=batches, progress=bar)
        if texts is not None:
            result.calibration |= texts.fingerprint
        if comparison is not None:
            result.examples = comparison.examples()
        result.recipe = recorded(ctx, result.recipe)
        with progress_bar("writing") as bar:
            save_checkpoint(loaded, out, folder, result.to_dict(), bar)
    if report is not None:
        result.to_html(report, f"{Path(model).name}, pruned")
    show(*prune_tables(result), *target_tables(result))
    say(result.summary)
    warn_changes(ctx, result.calibration)
    if texts is None:
        remark("no calibration texts were used: expect much lower quality", "yellow")
    else:
        remark(f"calibration: {texts}")
        for warning in texts.warnings:
            remark(f"warning: {warning}", "yellow")
    remark(f"wrote {out}; next: sparse-engine convert {out} PACKAGE{convert_options(target)}")
