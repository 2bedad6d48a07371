"""format="auto" for recurrent networks: the sparse twin is timed against torch's network, in turn.

The uses follow from the token counts asked for: sequences of STEPS steps, as many as have so many
tokens, and single steps with the state carried along where one token is asked for. A network is kept
sparse only if it is faster in each use.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import nn

from sparse_engine.backends.cuda_timer import time_on_gpu

STEPS = 32
"""Of the sequences that are timed: `tokens` are spread over as many."""
# A sample of single steps repeats them until the clock's grain does not matter.
REPEATS, ROUNDS = 50, 7
Call = Callable[[], object]


def faster_network(network: Any, twin: Any, tokens: tuple[int, ...]) -> tuple[bool, str]:
    """Whether `twin` beats `network` (torch's, or one of its cells) in every use of `tokens`; and the
    times.
    """
    batches = sorted({max(1, count // STEPS) for count in tokens})
    cell = isinstance(network, nn.RNNCellBase)
    device = next(network.parameters()).device
    kept, told = True, []
    if 1 in tokens and not getattr(network, "bidirectional", False):
        dense, sparse = _seconds(device, _single_steps(network, twin), REPEATS)
        kept = sparse < dense
        told.append(f"a step: dense {dense * 1e6:.1f} us, sparse {sparse * 1e6:.1f} us")
    larger = [batch for batch in batches if not (cell and batch == 1 and 1 in tokens)]
    if larger:
        times = [_seconds(device, _sequences(network, twin, batch), 1) for batch in larger]
        dense, sparse = (sum(part) for part in zip(*times, strict=True))
        kept = kept and sparse < dense
        what = "steps" if cell else f"sequences of {STEPS} steps"
        told.append(
            f"{', '.join(map(str, larger))} {what}: dense {dense * 1e3:.2f} ms, "
            f"sparse {sparse * 1e3:.2f} ms"
        )
    return kept, "; ".join(told)


def _inputs(network: Any, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, network.input_size).to(next(network.parameters()))


def _sequences(network: Any, twin: Any, batch: int) -> tuple[Call, Call]:
    """A call of each; of a cell one step of `batch` sequences."""
    shape: tuple[int, ...] = (STEPS, batch)
    if isinstance(network, nn.RNNCellBase):
        shape = (batch,)
    elif network.batch_first:
        shape = (batch, STEPS)
    x = _inputs(network, *shape)
    return (lambda: network(x)), (lambda: twin(x))


def _single_steps(network: Any, twin: Any) -> tuple[Call, Call]:
    """A step of one sequence, which goes on from the state that the last one left."""
    x = _inputs(network, 1)
    with torch.inference_mode():
        if isinstance(network, nn.RNNCellBase):
            dense_state, sparse_state = network(x), twin(x)
            return (lambda: network(x, dense_state)), (lambda: twin(x, sparse_state))
        sequence = x[None]  # one step of one sequence, whatever comes first
        dense_state, sparse_state = network(sequence)[1], twin.step(x)[1]
    return (lambda: network(sequence, dense_state)), (lambda: twin.step(x, sparse_state))


@torch.inference_mode()
def _seconds(device: torch.device, calls: tuple[Call, Call], repeats: int) -> tuple[float, float]:
    """Of a call of each: on the CPU the least of several samples in turn, on a GPU the median."""
    if device.type == "cuda":
        times = time_on_gpu(dict(zip(("dense", "sparse"), calls, strict=True)), device)
        return times["dense"] / 1e6, times["sparse"] / 1e6
    best = [float("inf"), float("inf")]
    for turn in range(ROUNDS):
        for i, call in enumerate(calls):
            start = perf_counter()
            for _ in range(repeats):
                call()
            if turn:  # the first turn warms up
                best[i] = min(best[i], (perf_counter() - start) / repeats)
    return best[0], best[1]
