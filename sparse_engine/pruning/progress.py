"""Reports the progress of a pruning run: every finished layer, and what is being computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sparse_engine.errors import UsageError

ProgressCallback = Callable[[int, int, str], None]
INTERVAL = 0.5  # seconds between two reports of what is being computed


def check_progress(progress: Any) -> None:
    """Raise UsageError unless it is a function, or None."""
    if progress is not None and not callable(progress):
        raise UsageError(f"progress is {progress!r:.40}; give a function of (done, total, text)")


class Progress:
    """Calls callback(done, total, text).

    Args:
        callback: None reports nothing.
        total: number of layers to prune.
    """

    def __init__(self, callback: ProgressCallback | None, total: int) -> None:
        self._callback = callback
        self._total = total
        self._done = 0
        self._reported = time.monotonic()

    def finished(self, layer: str) -> None:
        """Report that one more layer is done."""
        self._done += 1
        self._report(layer)

    def working(self, text: str) -> None:
        """Report what is being computed, such as a batch, at most once in INTERVAL."""
        if time.monotonic() - self._reported >= INTERVAL:
            self._report(text)

    def _report(self, text: str) -> None:
        self._reported = time.monotonic()
        if self._callback is not None:
            self._callback(self._done, self._total, text)
