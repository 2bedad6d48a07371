"""What a caller hears of a prune: every layer that is done, and now and then what is going on."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[int, int, str], None]
INTERVAL = 0.5  # seconds between two remarks on what is going on


class Steps:
    """Calls progress(done, total, what), where there is one; `total` layers are to be done."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._told = time.monotonic()

    def finished(self, layer: str) -> None:
        """One more layer is done."""
        self._done += 1
        self._tell(layer)

    def working(self, what: str) -> None:
        """Something that is no layer, such as a batch that is run; told every INTERVAL at most."""
        if time.monotonic() - self._told >= INTERVAL:
            self._tell(what)

    def _tell(self, what: str) -> None:
        self._told = time.monotonic()
        if self._progress is not None:
            self._progress(self._done, self._total, what)
