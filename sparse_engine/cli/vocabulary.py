"""sparse-engine prune --granularity vocabulary: the tokens that a corpus does not use go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sparse_engine.cli.common import progress_bar, remark, say
from sparse_engine.cli.recipe import options_of
from sparse_engine.errors import UsageError

if TYPE_CHECKING:
    from sparse_engine.text.mixture import CalibrationTexts

OPTIONS = ("model", "out", "granularity", "calibration", "recipe", "threads")


def is_vocabulary(granularity: str | None) -> bool:
    """Whether the option names this structure, and maybe options of it."""
    return (granularity or "").partition("(")[0] == "vocabulary"


def cut(ctx: typer.Context, model: str, out: Path, structure: str, files: list[str]) -> None:
    """Cut the vocabulary of a model, and write its folder.

    Args:
        ctx: of the command.
        model: folder or id of the model.
        out: the folder to write.
        structure: the option --granularity.
        files: the options --calibration.

    Raises:
        UsageError: for an option that has no effect here, or no corpus.
    """
    from sparse_engine.convert.sparsify import densify_
    from sparse_engine.io import load_pretrained, save_checkpoint
    from sparse_engine.models.inputs import has_decoder
    from sparse_engine.named import find
    from sparse_engine.pruning import PruneReport
    from sparse_engine.pruning.recipe import versions
    from sparse_engine.pruning.site_report import SiteReport
    from sparse_engine.structures import Vocabulary
    from sparse_engine.vocabulary import cut_vocabulary

    for parameter in ctx.command.params:
        name = parameter.name or ""
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in OPTIONS:
            raise UsageError(
                f"{parameter.opts[0]} has no effect on a vocabulary: leave it out. The corpus "
                "decides, and vocabulary(minimum=2) or vocabulary(size=4096)"
            )
    chosen = find(structure, (Vocabulary,))
    corpus = _corpus(files)
    with progress_bar("loading") as bar:
        loaded, folder = load_pretrained(model, bar)
    densify_(loaded)
    texts = list(corpus.texts)
    if has_decoder(loaded):  # a text, a tab and its answer
        texts = [part for text in texts for part in text.split("\t")]
    with progress_bar("cutting") as bar:
        report = cut_vocabulary(loaded, folder, texts, chosen, bar)
    name = report.tensors[0] if report.tensors else ""
    record: dict[str, Any] = PruneReport(
        report.structure,
        "",
        None,
        "",
        sites=[SiteReport(name, chosen.name, report.rows, tuple(sorted(report.kept)))],
        parameters=report.parameters,
        recipe={n: v for n, v in options_of(ctx).items() if n in OPTIONS},
        calibration=corpus.fingerprint,
        versions=versions(),
    ).to_dict()
    with progress_bar("writing") as bar:
        save_checkpoint(loaded, out, folder, record, bar, report.files)
    say(report.summary)
    remark(f"corpus: {corpus}")
    remark(f"wrote {out}; next: sparse-engine convert {out} PACKAGE")


def _corpus(files: list[str]) -> CalibrationTexts:
    """All texts of the sources."""
    from sparse_engine.text.mixture import CalibrationTexts, Part
    from sparse_engine.text.sources import find_sources

    sources = find_sources(files)
    if not sources:
        raise UsageError("a vocabulary is cut to a corpus: give it as --calibration FILE")
    if shared := next((source.name for source in sources if source.share != 1), None):
        raise UsageError(f"all texts of a corpus count: give {shared} without a share")
    texts = tuple(dict.fromkeys(text for source in sources for text in source.texts))
    counts = [len(source.texts) for source in sources]
    return CalibrationTexts(
        texts, tuple(Part(s, n, n, s.detail) for s, n in zip(sources, counts, strict=True))
    )
