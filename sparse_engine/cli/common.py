"""Shared by commands: lists in options, progress bars, thread counts, errors of scripts."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from typer.core import TyperCommand

from sparse_engine.errors import SparseEngineError, UsageError

T = TypeVar("T")

# Progress and remarks go to stderr, results to stdout, so that output can be piped.
console = Console(stderr=True)


def say(text: str) -> None:
    """Print a result: wrapped at words on a terminal, a line as it is in a pipe."""
    out = Console()
    out.print(text, markup=False, highlight=False, soft_wrap=not out.is_terminal)


def remark(text: str, style: str = "dim") -> None:
    """Print a remark to stderr, wrapped as `say` does."""
    wraps = not console.is_terminal
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=wraps)


def split(text: str, kind: Callable[[str], T], option: str) -> tuple[T, ...]:
    """ "1,16,128" as a tuple; raises UsageError naming the option."""
    try:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: {error}") from error


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr until the end of the context; call it with (done, total, name)."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.description}"),
    )
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=None)

        def report(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        yield report


class Command(TyperCommand):
    """A command that refuses a wrong SPARSE_ENGINE_ISA before it starts; help is not checked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Join the lines of each paragraph of the help, because rich keeps line ends."""
        super().__init__(*args, **kwargs)
        paragraphs = (self.help or "").split("\n\n")
        self.help = "\n\n".join(
            text if text.startswith(" ") else " ".join(text.split()) for text in paragraphs
        )

    def invoke(self, ctx: Any) -> Any:
        """Check, then run."""
        check_isa()
        return super().invoke(ctx)


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Ctrl-C ends the process at once: torch swallows some interrupts while it is imported."""

    def leave(*_: object) -> None:
        print("error: interrupted", file=sys.stderr, flush=True)
        os._exit(130)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def check_isa() -> None:
    """Refuse a SPARSE_ENGINE_ISA that does not exist or that this machine lacks."""
    with exit_on_interrupt():
        from sparse_engine import _core

    _core.active_isa()


def run_script(main: Callable[[], object]) -> None:
    """Run the main function of a script; expected errors are one line and an exit code."""
    try:
        main()
    except SparseEngineError as error:
        message, code = str(error), error.exit_code
    except OSError as error:
        message, code = f"{error.filename}: {error.strerror}", 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


MAX_THREADS = 1024  # many more need minutes to start, or kill the process


def set_threads(threads: int | None) -> None:
    """Use `threads` cores; torch's own default otherwise."""
    if threads is None:
        return
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"--threads must be 1 to {MAX_THREADS}, got {threads}")
    import torch

    torch.set_num_threads(threads)
