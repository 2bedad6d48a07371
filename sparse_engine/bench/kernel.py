"""bench kernel: the loop over the points of a grid, the same for every op.

Sparse and dense calls are timed in turn. Weights are as warm as repeated calls leave them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import Any

from sparse_engine import _core
from sparse_engine.bench.grid import Grid
from sparse_engine.bench.isa import forced_isa
from sparse_engine.bench.layer import Run
from sparse_engine.bench.machine import BusyMeter
from sparse_engine.bench.peer_hosts import PeerSet
from sparse_engine.bench.rows import KernelRow

Progress = Callable[[int, int, str], None]


class KernelBench:
    """Measures grids, and no point twice with the same kernel.

    Attributes:
        busy: Meter of the time that other programs use.
        repeated: By instruction set, the points left out because a lower one has the same kernels.
    """

    def __init__(self, busy: BusyMeter | None = None) -> None:
        self.busy = busy or BusyMeter()
        self.repeated: dict[str, int] = {}
        self._measured: set[Hashable] = set()

    def run(
        self, grid: Grid, isa: str | None = None, progress: Progress | None = None
    ) -> Iterator[Any]:
        """Measure every point of `grid`.

        Args:
            grid: The points.
            isa: The instruction set to force; None for the one in use.
            progress: Called as (done, total, name) before each point.

        Yields:
            A `KernelRow` for each point.

        Raises:
            UsageError: This machine does not support `isa`.
        """
        with forced_isa(isa), PeerSet(grid.against) as peer_set:
            peaks = {dtype: _core.peak_gflops(dtype) for dtype in grid.dtype}
            run = Run(peer_set, peaks, grid.rounds)
            self.busy.start()
            rows: dict[Hashable, KernelRow] = {}
            for done, (layer, m) in enumerate(grid.points()):
                if progress is not None:
                    progress(done, len(grid), f"{layer.name} m={m}")
                point = layer.key, m
                if point not in rows:
                    measured = point, layer.kernels(m)
                    if measured in self._measured:
                        self.repeated[isa or ""] = self.repeated.get(isa or "", 0) + 1
                        continue
                    self._measured.add(measured)
                    busy = self.busy.look()
                    rows[point] = replace(layer.measure(m, run), busy=busy)
                yield replace(rows[point], format=layer.label)


def bench_kernel(
    grid: Grid, isa: str | None = None, progress: Progress | None = None
) -> Iterator[Any]:
    """Measure every point of `grid`; see `KernelBench.run`."""
    return KernelBench().run(grid, isa, progress)
