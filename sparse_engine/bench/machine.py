"""What figures depend on: processor, versions, date, and how busy the machine is meanwhile."""

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

# From this share of lost time on a run warns.
BUSY = 0.2
# Side of the product that is timed: 0.1 to 1 ms a call, inside the caches of a core.
SPIN_SIZE = 256
BEFORE_SECONDS, BETWEEN_SECONDS = 0.2, 0.02


def conditions(against: Sequence[str] = ()) -> dict[str, Any]:
    """What a reader must know to judge the figures; versions of the peers' packages too."""
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
    """How much time other programs take from this one.

    A small dense product on all of torch's threads is repeated: where nothing else runs, each takes
    as long as the fastest one ever seen. What the mean takes longer is lost to others. Unlike the
    load average it is of this moment, and it sees what a virtual machine's neighbours take.
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
        """Look before anything is measured."""
        self._share(BEFORE_SECONDS / 4)  # threads wake, clocks rise
        self.before = self._share(BEFORE_SECONDS)
        return self.before

    def look(self) -> float:
        """Share of the time that is being lost just now, 0 to 1."""
        share = self._share(BETWEEN_SECONDS)
        self.most = max(self.most, share)
        return share

    def warning(self) -> str | None:
        """A line where more than BUSY was lost, before or between."""
        if max(self.before, self.most) < BUSY:
            return None
        return (
            f"the machine is busy: other work took {self.before:.0%} of the time before the run and "
            f"up to {self.most:.0%} between measurements; stop it, or trust ratios only"
        )

    def _share(self, seconds: float) -> float:
        taken: list[float] = []
        end = perf_counter() + seconds
        while not taken or (perf_counter() < end and len(taken) < 100_000):
            start = perf_counter()
            self._spin()
            taken.append(perf_counter() - start)
        self._best = min(self._best, *taken)
        return round(1 - self._best / mean(taken), 3)
