"""Times of calls on the CPU: the fastest sample of each, in turn, with cold caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import torch
from torch import Tensor

# The most that is read before each sample: more than the L2 of a core and its share of L3.
FLUSH_BYTES = 32 << 20
# Samples of each call, or until so many seconds are spent.
TURNS, SECONDS = 9, 1.0


@torch.inference_mode()
def time_on_cpu(
    calls: Mapping[str, Callable[[], object]],
    inputs: Sequence[Tensor] = (),
    repeats: int = 1,
    between: int | None = None,
) -> dict[str, float]:
    """Microseconds of each call, the fastest of its samples; see `Backend.time`."""
    best = dict.fromkeys(calls, float("inf"))
    flush = torch.zeros((FLUSH_BYTES if between is None else min(between, FLUSH_BYTES)) // 4)
    began = perf_counter()
    for turn in range(TURNS + 1):
        for name, call in calls.items():
            flush.sum()  # other layers' weights
            for x in inputs:
                x.sum()  # what the layer before has just written
            start = perf_counter()
            for _ in range(repeats):
                call()
            if turn:  # the first turn warms up
                best[name] = min(best[name], (perf_counter() - start) / repeats * 1e6)
        if turn and perf_counter() - began > SECONDS:
            break
    return best
