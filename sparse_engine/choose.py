"""format="auto": time the formats that fit a weight on this machine, and keep the fastest.

The score of a format is its time over dense torch's of the same dtype, averaged over the token
counts asked for; dense itself scores 1 and stays unless something beats it.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine.config import SparseConfig
from sparse_engine.formats import Format, block_fill, parse_format
from sparse_engine.ops import run_linear
from sparse_engine.packings import pack

# Blocks that are tried, tallest first: only where the pattern really is made of them.
BLOCKS = ((16, 1), (8, 1), (4, 1), (2, 1))
CUDA_BLOCKS = ((64, 64), (32, 32), (16, 16))
# A pattern counts as made of blocks when at least this share of their elements is non-zero.
MIN_FILL = 0.95
# Below this share of zeros no format is worth timing.
MIN_SPARSITY = 0.2


@dataclass(frozen=True)
class Choice:
    """What was chosen for one weight, and the figures behind it."""

    format: str
    score: float
    """Mean of time over dense time; 1 for dense."""
    times_us: dict[str, dict[int, float]]
    """Microseconds by format and token count."""
    reason: str


def candidates(weight: Tensor) -> list[str]:
    """Formats worth timing for `weight`: those that the device has kernels for."""
    on_cpu = weight.device.type == "cpu"
    blocks = BLOCKS if on_cpu else CUDA_BLOCKS
    fits = [f"bsr:{r}x{c}" for r, c in blocks if block_fill(weight, r, c) >= MIN_FILL]
    return ["csr", *fits[:2]] if on_cpu else fits[:2]


def zeros(weight: Tensor) -> float:
    """Share of zeros in `weight`; 0 for one without elements."""
    return 1 - int(weight.count_nonzero()) / weight.numel() if weight.numel() else 0.0


def choose_format(weight: Tensor, config: SparseConfig, dense: bool = True) -> Choice:
    """The fastest format for `weight` [out, in] at `config.tokens`.

    Dense is timed in the weight's own dtype, the one that it would keep. With `dense=False` a sparse
    format is chosen whether or not it beats dense.
    """
    sparsity = zeros(weight)
    if sparsity < MIN_SPARSITY:
        reason = f"{sparsity:.0%} zeros, formats are timed from {MIN_SPARSITY:.0%}"
        return Choice("dense" if dense else "csr", 1.0, {}, reason)
    stored = weight.to(config.source_dtype)
    specs = candidates(stored)
    if not specs:
        reason = f"no format with a kernel on {weight.device.type} fits the pattern"
        return Choice("dense" if dense else "csr", 1.0, {}, reason)
    packed = {}
    for spec in specs:
        format_class, params = parse_format(spec)
        packed[spec] = pack(
            format_class.from_dense(stored, **params), weight.device.type, config.dtype
        )
    times: dict[str, dict[int, float]] = {spec: {} for spec in ("dense", *specs)}
    for tokens in config.tokens:
        x = torch.randn(tokens, weight.shape[1]).to(weight)
        for spec, micros in _time_in_turn(weight, packed, x).items():
            times[spec][tokens] = micros
    scores = {
        spec: sum(times[spec][t] / times["dense"][t] for t in config.tokens) / len(config.tokens)
        for spec in times
        if spec != "dense" or dense
    }
    best = min(scores, key=lambda spec: scores[spec])
    told = ", ".join(
        f"{spec} {scores.get(spec, 1.0):.2f}" for spec in sorted(scores, key=lambda s: scores[s])
    )
    return Choice(best, scores[best], times, f"time over dense: {told}")


@torch.inference_mode()
def _time_in_turn(weight: Tensor, packed: dict[str, Format], x: Tensor) -> dict[str, float]:
    """Fastest of seven calls in microseconds; the rivals take turns, so that drift hits them all."""
    runs = {"dense": lambda: F.linear(x, weight)}
    for spec, p in packed.items():
        runs[spec] = lambda p=p: run_linear(p, x, None, "none", None)  # type: ignore[misc]
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(8):
        for spec, call in runs.items():
            start = perf_counter()
            call()
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            if turn:  # the first turn warms up
                best[spec] = min(best[spec], (perf_counter() - start) * 1e6)
    return best
