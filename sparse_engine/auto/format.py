"""format="auto": time the formats that fit a weight on this machine, and choose one.

A cost model drops the formats that cannot win; the rest, and dense torch, are timed in turn. The
score of a format is its time over dense's, both added up over the token counts asked for. In a model
the other layers' weights pass through the caches between two calls of a layer, so on the CPU other
bytes do before each sample; and of what is within NEAR of the fastest the smallest is kept, dense
included: it leaves the others more of the caches. A layer holds one packing: ask for the token counts
that matter, (1,) where a model mostly decodes. Choices are remembered (sparse_engine.auto.cache) for
weights of the same shape, dtype and sparsity, that the same formats fit, on the same processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine import _core
from sparse_engine.auto import cache as choices
from sparse_engine.backends.cuda_timer import time_on_gpu
from sparse_engine.config import SparseConfig
from sparse_engine.errors import UsageError
from sparse_engine.formats import Format, block_fill, most_in_group, parse_format
from sparse_engine.ops import run_linear
from sparse_engine.packings import FLOAT16_ON_CPU, pack

# Blocks that are tried, tallest first; the cost model drops those that would store too many zeros. On
# the CPU lower ones need no trial: csr is packed to the same runs, which find rows with the same columns.
BLOCKS = ((32, 1), (16, 1))
# On a GPU tall ones: what many tokens cost is set by the rows that share a tile of x.
GPU_BLOCKS = (
    *((128, cols) for cols in (128, 64, 32, 16)),
    *((64, cols) for cols in (64, 32, 16)),
    *((32, 32), (16, 16), (128, 1), (64, 1)),
)
GPU_GROUPS = ((1, 4), (2, 4), (2, 8), (4, 8), (4, 16))
# On a GPU a pattern counts as made of blocks when at least this share of their elements is non-zero.
MIN_FILL = 0.95
# Below this share of zeros no format is worth timing.
MIN_SPARSITY = 0.05
# Times this close to the best, as a share of it, count as a tie, which the fewest bytes decide.
NEAR = 0.1
# What is read before each sample on the CPU: more than the L2 of a core and its share of L3.
FLUSH_BYTES = 32 << 20
# How formats are timed: figures that were taken in another way are not compared with these.
METHOD = 2
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
    if not on_cpu:
        made_of = (f"bsr:{r}x{c}" for r, c in GPU_BLOCKS if block_fill(weight, r, c) >= MIN_FILL)
        groups = (f"nm:{n}:{m}" for n, m in GPU_GROUPS if most_in_group(weight, m) <= n)
        return [*islice(made_of, 2), *islice(groups, 1), "csr"]
    # Blocks have no kernel of their own in int8.
    blocks = [] if dtype == "int8" else [f"bsr:{r}x{c}" for r, c in BLOCKS]
    return ["csr", *blocks, "bitmask", *(["sellp"] if weight.shape[1] <= 65536 else [])]


def estimate(spec: str, weight: Tensor, nnz: int, tokens: int, dtype: str) -> float:
    """Cycles of one core, roughly, to multiply `tokens` tokens: what the kernels' loops take.

    From their instruction counts, good to a factor of two: enough to drop what cannot win. nnz: values
    that are stored and multiplied, of blocks with the zeros inside.
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
    cost = costs(specs, weight, tokens, dtype)
    least = max(1.0, min(cost.values()))
    return [s for s in specs if cost[s] <= HOPELESS * least]


def costs(
    specs: Iterable[str], weight: Tensor, tokens: tuple[int, ...], dtype: str
) -> dict[str, float]:
    """`estimate` of each format for `weight`, over all `tokens`; blocks as full as they are."""
    nnz = int(weight.count_nonzero())
    found = {}
    for spec in specs:
        stored = nnz
        if spec.startswith("bsr"):
            sides = parse_format(spec)[1]
            stored = round(nnz / (block_fill(weight, sides["rows"], sides["cols"]) or 1.0))
        found[spec] = sum(estimate(spec, weight, stored, count, dtype) for count in tokens)
    return found


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
    best, why = _smallest_near_best(weight, stored, config, scores, dense)
    told = ", ".join(
        f"{spec} {scores[spec]:.2f}" for spec in sorted(scores, key=scores.__getitem__)
    )
    source = ", as measured before" if remembered else ""
    return Choice(best, scores[best], times, f"time over dense: {told}{why}{source}")


def _smallest_near_best(
    weight: Tensor, stored: Tensor, config: SparseConfig, scores: dict[str, float], dense: bool
) -> tuple[str, str]:
    """Of what is about as fast as the fastest, that with the fewest bytes; and why not the fastest."""
    rivals = {spec: score for spec, score in scores.items() if dense or spec != "dense"}
    fastest = min(rivals, key=rivals.__getitem__)
    near = [spec for spec, score in rivals.items() if score <= rivals[fastest] * (1 + NEAR)]
    if len(near) == 1:
        return fastest, ""
    sizes = {
        spec: weight.nbytes if spec == "dense" else _packed(spec, weight, stored, config).nbytes
        for spec in near
    }
    best = min(near, key=lambda spec: (sizes[spec], rivals[spec]))
    why = f"; {best} is smallest of those within {NEAR:.0%}" if best != fastest else ""
    return best, why


def _key(weight: Tensor, config: SparseConfig, specs: list[str], sparsity: float) -> dict[str, Any]:
    """What must be equal for a measurement to hold again."""
    return {
        "method": METHOD,
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


def _packed(spec: str, weight: Tensor, stored: Tensor, config: SparseConfig) -> Format:
    """What a layer of `weight` would hold in a format; stored: the weight as formats take it."""
    format_class, params = parse_format(spec)
    plain = format_class.from_dense(stored, **params)
    return pack(plain, weight.device.type, config.dtype_of(weight), config.tokens)


def _measure(
    weight: Tensor, stored: Tensor, config: SparseConfig, specs: list[str]
) -> dict[str, dict[int, float]]:
    packed = {spec: _packed(spec, weight, stored, config) for spec in specs}
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
    flush = torch.zeros(FLUSH_BYTES // 4)
    began = perf_counter()
    for turn in range(TURNS + 1):
        for spec, call in runs.items():
            flush.sum()  # other weights
            x.sum()  # what the last layer has just written
            start = perf_counter()
            call()
            if turn:  # the first turn warms up
                best[spec] = min(best[spec], (perf_counter() - start) * 1e6)
        if turn and perf_counter() - began > SECONDS:
            break
    return best
