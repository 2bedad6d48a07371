"""Records each finished module in the folder of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from sparse_engine.errors import InvalidFileError
from sparse_engine.io.tensorfile import CODES, DTYPES
from sparse_engine.pruning.plan import Layer
from sparse_engine.pruning.report import PruneReport
from sparse_engine.streaming.copies import Copies
from sparse_engine.streaming.draft import Draft
from sparse_engine.streaming.storage import Kept

OnModule = Callable[[int, int, float], None]


class DraftJournal:
    """Writes the layers of each finished module to the copies, and the state to the draft.

    Args:
        draft: the folder of the run; what it has recorded is added to the report.
        copies: the shards that are written.
        report: receives the rows of finished modules, and is recorded with them.
        generator: the random numbers of the criterion, which continue where they were.
        total: number of modules.
        on_module: called as (done, total, seconds) after each module.
    """

    def __init__(
        self,
        draft: Draft,
        copies: Copies,
        report: PruneReport,
        generator: torch.Generator,
        total: int,
        on_module: OnModule | None,
    ) -> None:
        self._draft = draft
        self._copies = copies
        self._report = report
        self._generator = generator
        self._total = total
        self._on_module = on_module
        self._seconds = 0.0  # of earlier processes
        self._started = self._module_started = time.perf_counter()
        if draft.state:
            self._restore_report()

    @property
    def seconds(self) -> float:
        """Time spent so far, that of interrupted processes included."""
        return self._seconds + time.perf_counter() - self._started

    def resume(self) -> tuple[int, list[Kept], list[Kept]]:
        """How many modules are finished, and the states at the entrance of the next one."""
        state = self._draft.state
        self._module_started = time.perf_counter()
        if not state:
            return 0, [], []
        try:
            numbers = bytes.fromhex(state["generator"])
            self._generator.set_state(torch.frombuffer(bytearray(numbers), dtype=torch.uint8))
            dense, pruned = ([_kept(*entry) for entry in state[key]] for key in ("dense", "pruned"))
            return int(state["done"]), dense, pruned
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise self._damaged() from None

    def finish(self, done: int, layers: list[Layer]) -> None:
        """Write the layers of a module, which is still loaded."""
        for layer in layers:
            for key, parameter in layer.linear.named_parameters(recurse=False):
                self._copies.write(f"{layer.name}.{key}", parameter)
        self._copies.flush()

    def save(self, done: int, dense: list[Kept], pruned: list[Kept]) -> None:
        """Record that so many modules are finished, and the states."""
        self._draft.save(
            {
                "done": done,
                "dense": [_entry(kept) for kept in dense],
                "pruned": [_entry(kept) for kept in pruned],
                "generator": bytes(self._generator.get_state().tolist()).hex(),
                "report": self._report.to_dict() | {"seconds": self.seconds},
            }
        )
        now = time.perf_counter()
        if self._on_module is not None:
            self._on_module(done, self._total, now - self._module_started)
        self._module_started = now

    def _restore_report(self) -> None:
        try:
            stored = PruneReport.from_dict(self._draft.state["report"])
        except (KeyError, TypeError, InvalidFileError):
            raise self._damaged() from None
        self._report.layers += stored.layers
        self._report.blocks += stored.blocks
        self._report.unseen += stored.unseen
        self._seconds = stored.seconds

    def _damaged(self) -> InvalidFileError:
        return InvalidFileError(f"{self._draft.path}: its state is damaged: remove the folder")


def _entry(kept: Kept) -> list[Any]:
    return [kept.file, kept.start, list(kept.shape), CODES[kept.dtype]]


def _kept(file: str, start: int, shape: list[int], code: str) -> Kept:
    if file not in ("0", "1", "entrance"):
        raise ValueError(file)
    return Kept(file, start, tuple(shape), DTYPES[code])
