"""format="auto" for recurrent networks: the sparse network is timed against torch's, in turn.

The workloads follow from the token counts of the config: batches of sequences of STEPS steps that
have so many tokens together, and single steps that carry the state along for one token. A network
becomes sparse only if it is faster in each workload.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sparse_engine.backends import backend_of
from sparse_engine.config import SparseConfig

STEPS = 32
"""Steps of the sequences that are timed."""
# A sample of single steps repeats them until the clock's resolution does not matter.
REPEATS = 50
Calls = dict[str, Callable[[], object]]


def faster_network(network: Any, sparse: Any, config: SparseConfig) -> tuple[bool, str]:
    """Whether the sparse network is faster than torch's in every workload, and the times.

    Args:
        network: torch.nn.LSTM, GRU or RNN, or one of their cells.
        sparse: its sparse counterpart, with the same weights.
        config: its token counts, and the size of the model.
    """
    tokens, between = config.tokens, config.model_bytes
    batches = sorted({max(1, count // STEPS) for count in tokens})
    cell = isinstance(network, nn.RNNCellBase)
    faster, details = True, []
    if 1 in tokens and not getattr(network, "bidirectional", False):
        before, after = _seconds(*_single_steps(network, sparse), REPEATS, between)
        faster = after < before
        details.append(f"a step: dense {before * 1e6:.1f} us, sparse {after * 1e6:.1f} us")
    larger = [batch for batch in batches if not (cell and batch == 1 and 1 in tokens)]
    if larger:
        times = [_seconds(*_sequences(network, sparse, batch), 1, between) for batch in larger]
        before, after = (sum(part) for part in zip(*times, strict=True))
        faster = faster and after < before
        unit = "steps" if cell else f"sequences of {STEPS} steps"
        details.append(
            f"{', '.join(map(str, larger))} {unit}: dense {before * 1e3:.2f} ms, "
            f"sparse {after * 1e3:.2f} ms"
        )
    return faster, "; ".join(details)


def _inputs(network: Any, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, network.input_size).to(next(network.parameters()))


def _sequences(network: Any, sparse: Any, batch: int) -> tuple[torch.Tensor, Calls]:
    """The input of `batch` sequences and a call of each network; of a cell one step of them."""
    shape: tuple[int, ...] = (STEPS, batch)
    if isinstance(network, nn.RNNCellBase):
        shape = (batch,)
    elif network.batch_first:
        shape = (batch, STEPS)
    x = _inputs(network, *shape)
    return x, {"dense": lambda: network(x), "sparse": lambda: sparse(x)}


def _single_steps(network: Any, sparse: Any) -> tuple[torch.Tensor, Calls]:
    """The input and a step of one sequence, from the state that the step before has left."""
    x = _inputs(network, 1)
    with torch.inference_mode():
        if isinstance(network, nn.RNNCellBase):
            cell_state, sparse_state = network(x), sparse(x)
            return x, {
                "dense": lambda: network(x, cell_state),
                "sparse": lambda: sparse(x, sparse_state),
            }
        sequence = x[None]  # one step of one sequence, batch first or not
        state, sparse_state = network(sequence)[1], sparse.step(x)[1]
    return x, {
        "dense": lambda: network(sequence, state),
        "sparse": lambda: sparse.step(x, sparse_state),
    }


def _seconds(
    x: torch.Tensor, calls: Calls, repeats: int, between: int | None
) -> tuple[float, float]:
    """Seconds of a call of each network."""
    times = backend_of(x).time(calls, x.device, (x,), repeats, between)
    return times["dense"] / 1e6, times["sparse"] / 1e6
