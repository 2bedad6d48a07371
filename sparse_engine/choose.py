"""format="auto": time the formats that fit a weight on this machine, and keep the fastest.

A cost model drops the formats that cannot win; the rest, and dense torch, are timed in turn. The
score of a format is its time over dense's, both added up over the token counts asked for; dense
itself scores 1 and stays unless something beats it. A layer holds one packing: ask for the token
counts that matter, (1,) where a model mostly decodes. Choices are remembered (sparse_engine.choices) for
weights of the same shape, dtype and sparsity, that the same formats fit, on the same processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine import _core, choices
from sparse_engine.config import SparseConfig
from sparse_engine.errors import UsageError
from sparse_engine.formats import Format, block_fill, parse_format
from sparse_engine.gpu_timer import time_on_gpu
from sparse_engine.ops import run_linear
from sparse_engine.packings import FLOAT16_ON_CPU, pack

# Blocks that are tried, tallest first: only where the pattern really is made of them. On the CPU lower
# ones need no trial: csr is packed to the same runs, which find rows with the same columns anyway.
BLOCKS = ((32, 1), (16, 1))
# On a GPU tall ones: what many tokens cost is set by the rows that share a tile of x.
GPU_BLOCKS = (
    *((128, cols) for cols in (128, 64, 32, 16)),
    *((64, cols) for cols in (64, 32, 16)),
    *((32, 32), (16, 16), (128, 1), (64, 1)),
)
GPU_GROUPS = ((1, 4), (2, 4), (2, 8), (4, 8), (4, 16))
# A pattern counts as made of blocks when at least this share of their elements is non-zero.
MIN_FILL = 0.95
# Below this share of zeros no format is worth timing.
MIN_SPARSITY = 0.05
# What a format must save against dense: less is within the noise of the timer.
MARGIN = 0.02
# Formats whose estimate is worse than this many times the best one are not timed.
HOPELESS = 2.5
# A format is timed this often, or until so many seconds are spent on one token count.
TURNS, SECONDS = 9, 1.0


@dataclass(frozen=True)
class Choice:
    """What was chosen for one weight, and the figures behind it."""

    format: str
    score: float
    """Time over dense time, summed over the token counts; 1 for dense."""
    times_us: dict[str, dict[int, float]]
    """Microseconds by format and token count."""
    reason: str


def zeros(weight: Tensor) -> float:
    """Share of zeros in `weight`; 0 for one without elements."""
    return 1 - int(weight.count_nonzero()) / weight.numel() if weight.numel() else 0.0


def fitting(weight: Tensor, dtype: str) -> list[str]:
    """Formats that `weight` fits and that its device has kernels for, `dtype` as in SparseConfig."""
    on_cpu = weight.device.type == "cpu"
    blocks = BLOCKS if on_cpu else GPU_BLOCKS
    made_of = (f"bsr:{r}x{c}" for r, c in blocks if block_fill(weight, r, c) >= MIN_FILL)
    fits = list(islice(made_of, 2))
    if not on_cpu:
        groups = (f"nm:{n}:{m}" for n, m in GPU_GROUPS if most_in_group(weight, m) <= n)
        return [*fits, *islice(groups, 1), "csr"]
    if dtype == "int8":  # blocks have no kernel of their own there
        fits = []
    return ["csr", *fits, "bitmask", *(["sellp"] if weight.shape[1] <= 65536 else [])]


def most_in_group(weight: Tensor, of: int) -> int:
    """Non-zeros of the fullest group of `of` neighbours along the inputs."""
    kept = F.pad(weight != 0, (0, -weight.shape[1] % of))
    return int(kept.view(weight.shape[0], -1, of).sum(2).max()) if kept.numel() else 0


def estimate(spec: str, weight: Tensor, nnz: int, tokens: int, dtype: str) -> float:
    """Cycles of one core, roughly, to multiply `tokens` tokens: what the kernels' loops take.

    From their instruction counts, good to a factor of two: enough to drop what cannot win.
    """
    wide = _core.active_isa().startswith("avx512")
    vectors = -(-tokens // 16) * (1 if wide else 2)  # of tokens
    passes = -(-tokens // 4)  # over the weights
    if spec == "sellp":
        return 1.3 * nnz * passes * (0.2 if wide else 1.0)
    if spec == "bitmask":
        if _core.linear_kernel("bits", dtype, 1).endswith("scalar"):
            return passes * (weight.numel() / 8 + 1.5 * nnz)
        columns = {"float32": 16, "int8": 64}.get(dtype, 32)
        return passes * 4 * weight.numel() / columns
    if spec.startswith("bsr") and tokens <= 8:
        return nnz * 0.15 * max(1, tokens / 4)
    return nnz * max(1.0, 0.6 * vectors)


def candidates(weight: Tensor, tokens: tuple[int, ...], dtype: str) -> list[str]:
    """The formats worth timing: those that fit and that the cost model does not drop."""
    specs = fitting(weight, dtype)
    if weight.device.type != "cpu":
        return specs
    nnz = int(weight.count_nonzero())
    costs = {s: sum(estimate(s, weight, nnz, t, dtype) for t in tokens) for s in specs}
    least = max(1.0, min(costs.values()))
    return [s for s in specs if costs[s] <= HOPELESS * least]


def choose_format(weight: Tensor, config: SparseConfig, dense: bool = True) -> Choice:
    """The fastest format for `weight` [out, in] at `config.tokens`.

    Dense is timed in the weight's own dtype, the one that it would keep. With `dense=False` a sparse
    format is chosen whether or not it beats dense.
    """
    if config.dtype == "float16" and weight.device.type == "cpu":
        raise UsageError(FLOAT16_ON_CPU)
    sparsity = zeros(weight)
    fallback = "dense" if dense else "csr"
    if sparsity < MIN_SPARSITY:
        reason = f"{sparsity:.0%} zeros, formats are timed from {MIN_SPARSITY:.0%}"
        return Choice(fallback, 1.0, {}, reason)
    stored = weight.to(config.source_dtype)
    specs = candidates(stored, config.tokens, config.dtype)
    if not specs:
        reason = f"no format with a kernel on {weight.device.type} fits the pattern"
        return Choice(fallback, 1.0, {}, reason)
    key = _key(weight, config, specs, sparsity)
    times = choices.recall(key)
    remembered = times is not None
    if times is None:
        try:
            times = _measure(weight, stored, config, specs)
        except torch.OutOfMemoryError:
            reason = "too little memory on the GPU to time formats, which also expands them"
            return Choice(fallback, 1.0, {}, reason)
        choices.remember(key, times)
    totals = {spec: sum(times[spec][t] for t in config.tokens) for spec in times}
    scores = {spec: total / totals["dense"] for spec, total in totals.items()}
    best = min(specs, key=lambda spec: scores[spec])
    told = ", ".join(
        f"{spec} {scores[spec]:.2f}" for spec in sorted(scores, key=scores.__getitem__)
    )
    source = ", as measured before" if remembered else ""
    reason = f"time over dense: {told}{source}"
    if dense and scores[best] > 1 - MARGIN:
        return Choice("dense", 1.0, times, reason)
    return Choice(best, scores[best], times, reason)


def _key(weight: Tensor, config: SparseConfig, specs: list[str], sparsity: float) -> dict[str, Any]:
    """What must be equal for a measurement to hold again."""
    return {
        "device": torch.cuda.get_device_name(weight.device) if weight.is_cuda else _core.cpu_name(),
        "isa": _core.active_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sparse_engine": version("sparse-engine"),
        "shape": list(weight.shape),
        "dense": str(weight.dtype).removeprefix("torch."),
        "dtype": config.dtype_of(weight),
        "tokens": list(config.tokens),
        "formats": specs,
        "sparsity": round(sparsity, 2),
    }


def _measure(
    weight: Tensor, stored: Tensor, config: SparseConfig, specs: list[str]
) -> dict[str, dict[int, float]]:
    packed = {}
    for spec in specs:
        format_class, params = parse_format(spec)
        plain = format_class.from_dense(stored, **params)
        packed[spec] = pack(plain, weight.device.type, config.dtype_of(weight))
    times: dict[str, dict[int, float]] = {spec: {} for spec in ("dense", *specs)}
    for tokens in config.tokens:
        x = torch.randn(tokens, weight.shape[1]).to(weight)
        for spec, micros in _time_in_turn(weight, packed, x).items():
            times[spec][tokens] = micros
    return times


@torch.inference_mode()
def _time_in_turn(weight: Tensor, packed: dict[str, Format], x: Tensor) -> dict[str, float]:
    """Microseconds of a call, on the CPU of the fastest, on a GPU the median; the rivals take turns, so
    that drift hits them all.
    """
    runs: dict[str, Callable[[], object]] = {"dense": lambda: F.linear(x, weight)}
    for spec, p in packed.items():
        runs[spec] = lambda p=p: run_linear(p, x, None, "none", None)  # type: ignore[misc]
    if x.is_cuda:
        return time_on_gpu(runs, x.device)
    best = dict.fromkeys(runs, float("inf"))
    began = perf_counter()
    for turn in range(TURNS + 1):
        for spec, call in runs.items():
            start = perf_counter()
            call()
            if turn:  # the first turn warms up
                best[spec] = min(best[spec], (perf_counter() - start) * 1e6)
        if turn and perf_counter() - began > SECONDS:
            break
    return best
