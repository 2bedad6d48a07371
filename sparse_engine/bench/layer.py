"""A layer to measure, and what all points of a run share."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sparse_engine.bench.peer_hosts import PeerSet
from sparse_engine.bench.rows import KernelRow


@dataclass(frozen=True)
class Run:
    """What all points of a run share.

    Attributes:
        peer_set: The peers.
        peaks: GFLOP/s of the processor by dtype.
        rounds: Samples of each time.
    """

    peer_set: PeerSet
    peaks: Mapping[str, float]
    rounds: int


class BenchLayer(Protocol):
    """A layer to measure; it is packed when it is measured first."""

    @property
    def name(self) -> str:
        """What a progress bar shows."""

    @property
    def label(self) -> str:
        """The format as rows name it."""

    @property
    def key(self) -> Hashable:
        """Equal for layers of the same weight and packing."""

    def kernels(self, m: int) -> tuple[str, ...]:
        """Names of the kernels that run for m tokens or sequences."""

    def measure(self, m: int, run: Run) -> KernelRow:
        """This layer on m tokens or sequences."""
