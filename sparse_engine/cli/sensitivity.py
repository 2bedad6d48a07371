"""sparse-engine sensitivity: which layers of a model bear how much pruning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sparse_engine.cli.common import progress_bar, remark, say, set_threads, split
from sparse_engine.errors import UsageError


def sensitivity(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or id, or a package.")],
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            help="FILE or FILE:SHARE, one text a line, on which outputs are compared; or default."
        ),
    ] = None,
    sparsity: Annotated[str, typer.Option(help="Fractions of zeros.")] = "0.5,0.7,0.9",
    granularity: Annotated[str, typer.Option(help="element, 4x1 (rows x cols), 2:4.")] = "element",
    criterion: Annotated[str, typer.Option(help="As of prune.")] = "magnitude",
    recovery: Annotated[str, typer.Option(help="As of prune.")] = "none",
    by: Annotated[
        str, typer.Option(help="layer: one at a time; model: all together.")
    ] = "layer,model",
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Also time calls of so many tokens, all layers pruned."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page to write.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration texts to use.")] = 64,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of a calibration text.")] = 128,
    seed: Annotated[int, typer.Option(help="For random choices.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Cores to use.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
) -> None:
    """Prune one layer at a time, and all together, and compare outputs with the dense model's.

    Logits are compared by KL divergence, hidden states by cosine. Nothing is written but the page.
    Other metrics: se.sensitivity in Python takes any function of the model.

    Examples:

      sparse-engine sensitivity ./model --report sensitivity.html

      sparse-engine sensitivity ./model --calibration texts.txt --by model --tokens 128
    """
    from sparse_engine.analysis.sensitivity import check_settings
    from sparse_engine.analysis.sensitivity import sensitivity as measure
    from sparse_engine.cli.sensitivity_tables import sensitivity_tables
    from sparse_engine.convert.sparsify import densify_
    from sparse_engine.io import load_pretrained
    from sparse_engine.pruning.seed import check_seed
    from sparse_engine.reporting.pyplot import check_output
    from sparse_engine.reporting.tables import show
    from sparse_engine.text.calibration import Draw
    from sparse_engine.text.sources import find_sources

    if output not in ("table", "json"):
        raise UsageError(f"output {output!r}: use table or json")
    set_threads(threads)
    if report is not None:
        check_output(report, "--report", (".html",))
    sparsities = split(sparsity, float, "--sparsity")
    granularities, ways = split(granularity, str, "--granularity"), split(by, str, "--by")
    # Wrong options are refused before the model is loaded.
    check_seed(seed)
    check_settings(sparsities, granularities, criterion, recovery, ways, has_inputs=True)
    sources = find_sources(calibration or ["default"])
    if not sources:
        raise UsageError("--calibration none: outputs are compared on texts; give some")
    with progress_bar("loading") as bar:
        loaded, folder = load_pretrained(model, bar)
    densify_(loaded)
    batches, texts = Draw(sources, samples, max_length, seed).batches(folder, loaded)
    with progress_bar("pruning and comparing") as bar:
        result = measure(
            loaded,
            None,
            sparsities,
            granularities,
            calibration=batches,
            criterion=criterion,
            recovery=recovery,
            by=ways,
            tokens=tokens,
            seed=seed,
            progress=bar,
        )
    if report is not None:
        result.to_html(report, f"{Path(model).name}: sensitivity to pruning")
    if output == "json":
        print(json.dumps(result.to_dict(), indent=1))
        return
    show(*sensitivity_tables(result))
    say(result.summary)
    remark(f"calibration: {texts}")
    if report is not None:
        remark(f"wrote {report}")
