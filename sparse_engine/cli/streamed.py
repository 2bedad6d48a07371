"""Pruning and converting models that do not fit into memory: what the commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_engine.cli.common import progress_bar, remark
from sparse_engine.errors import UsageError

if TYPE_CHECKING:
    from sparse_engine.pruning import PruneReport

TEXTS = 8
"""Calibration texts in a batch: less memory than in the batches of models in memory."""


def chosen(stream: bool | None, model: str, examples: object = None, target: object = None) -> bool:
    """Whether a model is streamed: as requested, else if it does not fit into memory.

    Raises:
        UsageError: `examples` or a target were given, which need the whole model.
    """
    from sparse_engine.streaming import must_stream

    if stream and examples:
        raise UsageError("--examples run through the whole model: leave them out with --stream")
    if stream and target:
        raise UsageError("a target is measured on the whole model: leave out --stream")
    if target is None and stream is None and must_stream(model):
        remark(f"{model} is too large for the memory that is free: it is streamed", "yellow")
        return True
    return bool(stream)


def prune_streamed(
    model: str, out: Path, texts: list[str] | None, max_length: int, options: dict[str, Any]
) -> PruneReport:
    """Prune a checkpoint one module at a time, and say how long each takes.

    Args:
        model: folder or id of the checkpoint.
        out: the folder to write.
        texts: calibration texts, or None.
        max_length: tokens of a text.
        options: further arguments of `prune_checkpoint`.
    """
    from sparse_engine.streaming import open_checkpoint, prune_checkpoint, unfinished
    from sparse_engine.text.calibration import calibration_batches
    from sparse_engine.text.tokenizer import load_tokenizer

    checkpoint = open_checkpoint(model)
    batches = None
    if texts is not None:
        tokenizer = load_tokenizer(checkpoint.folder)
        batches = calibration_batches(texts, tokenizer, checkpoint.model, max_length, TEXTS)
    try:
        with progress_bar("pruning") as report:
            return prune_checkpoint(
                checkpoint,
                out,
                **options,
                calibration=batches,
                progress=report,
                on_module=_tell_time,
            )
    except KeyboardInterrupt:
        if unfinished(out).is_dir():
            remark(f"{unfinished(out)} holds what is done: the same command continues")
        raise


def _tell_time(done: int, total: int, seconds: float) -> None:
    left = (total - done) * seconds
    remark(f"module {done} of {total}: {seconds:.1f} s, about {left / 60:.0f} min left")
