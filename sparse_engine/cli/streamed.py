"""Pruning and converting models that do not fit into memory: what the commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparse_engine.cli.common import progress_bar, remark
from sparse_engine.errors import UsageError

if TYPE_CHECKING:
    from sparse_engine.config import SparseConfig
    from sparse_engine.convert.report import SparsifyReport
    from sparse_engine.pruning import PruneReport
    from sparse_engine.pruning.steps import Step
    from sparse_engine.text.calibration import Draw
    from sparse_engine.text.mixture import CalibrationTexts

Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream", help="Keep one block in memory. Default: if memory is short."
    ),
]
"""The option of the commands."""
TEXTS = 8
"""Calibration texts in a batch: less memory than in the batches of models in memory."""


def chosen(stream: bool | None, model: str, whole: str) -> bool:
    """Whether a model is streamed: as requested, else if it does not fit into memory.

    Args:
        stream: the option.
        model: folder or id of the checkpoint.
        whole: an option that needs the whole model, and "run" or "runs"; "" if there is none.

    Raises:
        UsageError: the model would be streamed, and `whole` was given.
    """
    from sparse_engine.streaming import must_stream

    short = stream is None and must_stream(model)
    if (stream or short) and whole:
        raise UsageError(
            f"{whole} the whole model, which is streamed: leave it out, or give --no-stream"
        )
    if short:
        remark(f"{model} is too large for the memory that is free: it is streamed", "yellow")
    return bool(stream or short)


def needs_whole(steps: list[Step], has_examples: bool) -> str:
    """What of a pruning run needs the whole model, as `chosen` takes it; "" for nothing."""
    from sparse_engine.pruning.method import Method

    if any(step.target is not None for step in steps):
        return "a target times"
    if not all(isinstance(step.method, Method) for step in steps):
        return "a structure changes"
    if len(steps) > 1:
        return "a run in several steps changes"
    return "--examples run" if has_examples else ""


def prune_streamed(
    model: str, out: Path, draw: Draw | None, options: dict[str, Any]
) -> tuple[PruneReport, CalibrationTexts | None]:
    """Prune a checkpoint one module at a time, and say how long each takes.

    Args:
        model: folder or id of the checkpoint.
        out: the folder to write.
        draw: of calibration texts, or None.
        options: further arguments of `prune_checkpoint`.

    Returns:
        What was pruned, and the calibration texts.
    """
    from sparse_engine.streaming import open_checkpoint, prune_checkpoint, return_freed_memory

    return_freed_memory()
    checkpoint = open_checkpoint(model)
    batches, texts = None, None
    if draw:
        batches, texts = draw.batches(checkpoint.folder, checkpoint.model, TEXTS)
    with _saying_what_is_left(out), progress_bar("pruning") as report:
        result = prune_checkpoint(
            checkpoint, out, **options, calibration=batches, progress=report, on_module=_tell_time
        )
        return result, texts


def convert_streamed(model: str, out: Path, config: SparseConfig) -> tuple[SparsifyReport, Path]:
    """Convert a checkpoint one module at a time; returns the report and the checkpoint's folder."""
    from sparse_engine.streaming import convert_checkpoint, open_checkpoint, return_freed_memory
    from sparse_engine.tasks import check_pooling

    return_freed_memory()
    checkpoint = open_checkpoint(model)
    check_pooling(checkpoint.model, checkpoint.folder)
    with _saying_what_is_left(out), progress_bar("converting") as report:
        return convert_checkpoint(checkpoint, out, config, report, _tell_time), checkpoint.folder


@contextmanager
def _saying_what_is_left(out: Path) -> Iterator[None]:
    """After an interrupt, say that the run can be continued."""
    from sparse_engine.streaming import unfinished

    try:
        yield
    except KeyboardInterrupt:
        if unfinished(out).is_dir():
            remark(f"{unfinished(out)} holds what is done: the same command continues")
        raise


def _tell_time(done: int, total: int, seconds: float) -> None:
    left = (total - done) * seconds
    about = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
    remark(f"module {done} of {total}: {seconds:.1f} s, about {about} left")
