"""Conditions of a measurement: processor, versions, date, and how busy the machine is."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.metadata import version
from statistics import mean
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from sparse_engine import _core
from sparse_engine.bench.peers import find_peers

# A run warns from this share of lost time on.
BUSY = 0.2
# Side of the product that is timed: 0.1 to 1 ms a call, inside the caches of a core.
SPIN_SIZE = 256
BEFORE_SECONDS, BETWEEN_SECONDS = 0.2, 0.02


def conditions(against: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, instruction set, threads, versions and date; `against`: names of the peers."""
    packages = {package for peer in find_peers(against) for package in peer.packages}
    return {
        "cpu": _core.cpu_name(),
        "isa": _core.active_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sparse_engine": version("sparse-engine"),
        "python": platform.python_version(),
        **{package: version(package) for package in sorted(packages)},
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
    }


class BusyMeter:
    """Measures the share of time that other programs use.

    A small dense product is repeated on all of torch's threads. On an idle machine each repetition
    is as fast as the fastest one ever measured; the excess of the mean is attributed to other
    programs. Unlike the load average this is current, and it includes the neighbours of a virtual
    machine.
    """

    def __init__(self, spin: Callable[[], object] | None = None) -> None:
        if spin is None:
            a: Tensor = torch.randn(SPIN_SIZE, SPIN_SIZE)
            out = torch.empty_like(a)

            def spin() -> object:
                return torch.mm(a, a, out=out)

        self._spin, self._best = spin, float("inf")
        self.before = 0.0
        """Share lost before the first measurement."""
        self.most = 0.0
        """Largest share lost between measurements."""

    def start(self) -> float:
        """Share lost before anything is measured."""
        self._share(BEFORE_SECONDS / 4)  # threads wake, clocks rise
        self.before = self._share(BEFORE_SECONDS)
        return self.before

    def look(self) -> float:
        """Share lost at this moment, 0 to 1."""
        share = self._share(BETWEEN_SECONDS)
        self.most = max(self.most, share)
        return share

    def warning(self) -> str | None:
        """A line where more than BUSY was lost, before or between."""
        if max(self.before, self.most) < BUSY:
            return None
        return (
            f"the machine is busy: other programs used {self.before:.0%} of the time "
            "before the run "
            f"and up to {self.most:.0%} between measurements; stop it, or trust ratios only"
        )

    def _share(self, seconds: float) -> float:
        times: list[float] = []
        end = perf_counter() + seconds
        while not times or (perf_counter() < end and len(times) < 100_000):
            start = perf_counter()
            self._spin()
            times.append(perf_counter() - start)
        self._best = min(self._best, *times)
        return round(1 - self._best / mean(times), 3)
