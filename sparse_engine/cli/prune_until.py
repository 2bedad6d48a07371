"""sparse-engine prune-until: prune and train in rounds, as long as the outputs stay close."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparse_engine.cli.common import progress_bar, remark, set_threads, split
from sparse_engine.errors import SparseEngineError, UsageError

if TYPE_CHECKING:
    from sparse_engine.tuning import UntilReport

BATCH = 32
PARTS = 5
"""One of so many batches is held out."""


def prune_until(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or id, or a package.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    max_drop: Annotated[
        float, typer.Option(help="How far outputs may move: 1 - cosine, or the KL divergence.")
    ] = 0.02,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="FILE or FILE:SHARE, one text a line; repeat to mix. Or: default."),
    ] = None,
    sparsity: Annotated[
        str | None, typer.Option(help="A list such as 0.5,0.7,0.9; steps to the limit without.")
    ] = None,
    granularity: Annotated[
        str, typer.Option(help="element, 4x1 (rows x cols), head, unit, as in prune.")
    ] = "element",
    criterion: Annotated[str | None, typer.Option(help="As in prune.")] = None,
    recovery: Annotated[str | None, typer.Option(help="As in prune.")] = None,
    allocator: Annotated[str | None, typer.Option(help="As in prune.")] = None,
    steps: Annotated[
        int, typer.Option(min=0, help="Steps of distillation from the dense model in a round.")
    ] = 100,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-4,
    budget: Annotated[str | None, typer.Option(help="Time for all rounds, as 10m or 2h.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Failed rounds, one after another, that end the run.")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Stop when a call is so many times faster than torch.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of a call, for --speedup.")] = 128,
    folder: Annotated[
        Path | None, typer.Option(help="Keeps the rounds; run it again after a kill: it goes on.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page to write.")] = None,
    samples: Annotated[int, typer.Option(min=10, help="Calibration texts to use.")] = 512,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of a calibration text.")] = 128,
    seed: Annotated[int, typer.Option(help="For random choices.")] = 0,
    layers: Annotated[
        list[str] | None, typer.Option("--layer", help="Layers to prune, as in prune.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Layers to leave, likewise.")] = None,
    threads: Annotated[int | None, typer.Option(help="Cores to use.")] = None,
) -> None:
    """Find the highest sparsity whose outputs stay close to the dense model's; write a folder.

    Each round prunes more, trains on the outputs of the dense model, and compares outputs on every
    fifth batch of the calibration texts, which nothing else reads. After a failed round the best
    state comes back, and the step is halved. Hidden states are compared by cosine, logits by KL
    divergence. se.prune_until in Python takes any metric and any training. Next: sparse-engine
    convert.

    Examples:

      sparse-engine prune-until ./all-MiniLM-L6-v2 pruned --max-drop 0.05 --budget 10m

      sparse-engine prune-until ./model pruned --granularity 4x1 --calibration texts.txt \\
      --speedup 3 --folder rounds
    """
    from sparse_engine.analysis.output_metric import OutputMetric
    from sparse_engine.cli.steps import arguments_of, is_recurrent
    from sparse_engine.convert.sparsify import densify_
    from sparse_engine.io import load_pretrained, save_checkpoint
    from sparse_engine.io.folder import check_free
    from sparse_engine.pruning import Target
    from sparse_engine.pruning.calibration import read_calibration
    from sparse_engine.reporting.pyplot import check_output
    from sparse_engine.text.calibration import Draw
    from sparse_engine.text.sources import find_sources
    from sparse_engine.tuning import Retrain
    from sparse_engine.tuning import prune_until as tune
    from sparse_engine.tuning.clock import seconds_of
    from sparse_engine.tuning.widen import find_widening

    # Wrong options are refused before the model is loaded.
    set_threads(threads)
    check_free(out)
    if report is not None:
        check_output(report, "--report", (".html",))
    seconds_of(budget)
    sparsities = None if sparsity is None else split(sparsity, float, "--sparsity")
    find_widening(sparsities, None)
    target = None if speedup is None else Target(speedup=speedup, tokens=tokens, threads=threads)
    sources = find_sources(calibration or ["default"])
    if not sources:
        raise UsageError("--calibration none: outputs are compared on texts; give some")
    values = {
        "sparsity": 0.5,
        "granularity": granularity,
        "criterion": criterion,
        "recovery": recovery,
        "allocator": allocator,
        "seed": seed,
        "layers": layers or (),
        "ignore": ignore or (),
    }
    arguments, _ = arguments_of(values, None, has_texts=True)
    del arguments["sparsity"]
    with progress_bar("loading") as bar:
        loaded, source = load_pretrained(model, bar)
    densify_(loaded)
    if is_recurrent(loaded):
        arguments, _ = arguments_of(values, None, has_texts=True, recurrent=True)
        del arguments["sparsity"]
    loaded.requires_grad_(True)  # packages and checkpoints are loaded for inference
    draw = Draw(sources, samples, max_length, seed)
    batches, texts = draw.batches(source, loaded, min(BATCH, samples // PARTS))
    held_out = batches[PARTS // 2 :: PARTS]
    others = [batch for batch in batches if not any(batch is one for one in held_out)]
    if not held_out or not others:
        raise UsageError(f"{len(batches)} batches of texts are too few: give more texts")
    metric = OutputMetric(loaded, read_calibration(loaded, held_out))
    with progress_bar("pruning") as bar:
        result = tune(
            loaded,
            metric,
            max_drop,
            higher_is_better=metric.kind.higher_is_better,
            sparsities=sparsities,
            train=Retrain(others, steps, learning_rate) if steps else None,
            target=target,
            patience=patience,
            budget=budget,
            folder=folder,
            progress=bar,
            calibration=others,
            **arguments,
        )
    print(result)
    if report is not None:
        result.to_html(report, f"{Path(model).name}: pruned until its outputs move")
    if result.best is None:
        hint = "; give a larger --budget or fewer --steps" if result.stop == "budget" else ""
        raise SparseEngineError(f"{out} is not written: {result.reason}{hint}")
    recipe = {**arguments, "sparsity": result.sparsity}
    record = {"recipe": recipe, "calibration": texts.fingerprint, "rounds": result.to_dict()}
    with progress_bar("writing") as bar:
        save_checkpoint(loaded, out, source, record, bar)
    remark(f"calibration: {texts}; {len(held_out)} of {len(batches)} batches were held out")
    remark(f"wrote {out}; next: sparse-engine convert {out} PACKAGE")
    _check_complete(result)


def _check_complete(result: UntilReport) -> None:
    """Let the exit code tell that a run was cut short, after its best state was written."""
    if result.stop == "interrupt":
        raise KeyboardInterrupt
    if not result.is_complete:
        raise SparseEngineError(f"the best state is written, then: {result.reason}")
