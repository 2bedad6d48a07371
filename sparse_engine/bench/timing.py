"""Timing calls in turn, so that a drift of the machine affects all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter, sleep
from typing import Protocol

# A sample repeats a call until it has lasted this long, so that the clock's grain does not matter.
SAMPLE_SECONDS = 2e-3
# Before each sample the call is repeated for so long, untimed, to wake threads and to warm caches.
# Without it onnxruntime and OpenVINO measured 15 to 40 % slower than alone. Calls longer than
# LONG_SECONDS do not need it.
WARM_SECONDS = 5e-3
LONG_SECONDS = 2e-2


class Sampler(Protocol):
    """Samples one call, in this process or in another one."""

    pool: str
    """The thread pool of the call: samplers of one pool may follow each other at once."""
    spin: float
    """Seconds for which the threads of the pool spin after a call."""

    def __call__(self) -> float:
        """One sample: seconds a call."""


class CallSampler:
    """Samples of a call in this process, on the OpenMP threads that torch and the kernels share."""

    pool = "openmp"
    spin = 2e-2

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        call()
        once = max(1e-7, min(_seconds(call, 1) for _ in range(2)))
        self._repeats = max(1, min(1000, round(SAMPLE_SECONDS / once)))
        self._warm = 0 if once > LONG_SECONDS else max(1, min(2000, round(WARM_SECONDS / once)))

    def __call__(self) -> float:
        """One sample: seconds a call."""
        for _ in range(self._warm):
            self._call()
        return _seconds(self._call, self._repeats)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - start) / repeats


@dataclass(frozen=True)
class Samples:
    """Seconds a call, one figure a sample."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the samples."""
        return median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """10th and 90th percentile, interpolated between samples."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        cuts = quantiles(self.seconds, n=10, method="inclusive")
        return cuts[0], cuts[-1]

    def spread_us(self) -> tuple[float, float]:
        """`spread` in microseconds, rounded as the medians are."""
        low, high = self.spread
        return round(low * 1e6, 2), round(high * 1e6, 2)


def samples_in_turn(samplers: Mapping[str, Sampler], rounds: int = 9) -> dict[str, Samples]:
    """`rounds` samples of each, in the order A B C A B C ...

    Where the next call runs on other threads than the last one, wait until those have stopped
    spinning: on the same cores they would slow it down, up to a hundredfold.
    """
    several = len({sampler.pool for sampler in samplers.values()}) > 1
    if several:
        sleep(max(sampler.spin for sampler in samplers.values()))
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    last: Sampler | None = None
    for _ in range(rounds):
        for name, sampler in samplers.items():
            if last is not None and last.pool != sampler.pool:
                sleep(last.spin)
            samples[name].append(sampler())
            last = sampler
    return {name: Samples(tuple(seconds)) for name, seconds in samples.items()}


def time_in_turn(calls: Mapping[str, Callable[[], object]], rounds: int = 9) -> dict[str, float]:
    """Median seconds of each call over `rounds` samples in turn, after a warm-up."""
    samplers = {name: CallSampler(call) for name, call in calls.items()}
    return {name: found.median for name, found in samples_in_turn(samplers, rounds).items()}
