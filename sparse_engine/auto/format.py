"""format="auto": time the formats that fit a weight on this machine, and choose one.

The cost model (sparse_engine.auto.cost) drops formats that cannot win. The others and dense torch
are timed in turn. The score of a format is its time over dense's, both summed over the token counts
of the config. In a model the weights of other layers pass through the caches between two calls of a
layer, so on the CPU as much other memory is read before each sample: a small model stays in the
caches, a large one does not. Among the formats within TIE_MARGIN of
the fastest the smallest is chosen, dense included: it leaves more of the caches to other layers.

A layer has one packing. Configure the token counts that matter: (1,) where a model mostly decodes.
Measurements are cached (sparse_engine.auto.cache) for weights of the same shape, dtype and sparsity
that fit the same formats, on the same processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_engine import _core
from sparse_engine.auto import cache
from sparse_engine.auto.cache import Measurement
from sparse_engine.auto.cost import candidates
from sparse_engine.backends import backend_of
from sparse_engine.backends.cpu_timer import FLUSH_BYTES
from sparse_engine.config import SparseConfig
from sparse_engine.formats import Format, FormatSpec
from sparse_engine.ops import run_linear

# Below this share of zeros no format is timed.
MIN_SPARSITY = 0.05
# Scores within this share of the best one are a tie, which the smallest packed size decides.
TIE_MARGIN = 0.1
# Part of the cache key: measurements taken in another way are not compared with these.
METHOD = 5


@dataclass(frozen=True)
class Choice:
    """The format chosen for one weight, and the measurements behind it.

    Attributes:
        format: the spec, or "dense".
        score: time over dense time, summed over the token counts; 1 for dense.
        times_us: microseconds by format and token count.
        reason: why this format, for the report.
        packed: the weight in that format as kernels read it, if it was packed to be timed.
    """

    format: str
    score: float
    times_us: dict[str, dict[int, float]]
    reason: str
    packed: Format | None = None


def share_of_zeros(weight: Tensor) -> float:
    """Share of zeros in `weight`, 0..1; 0 for one without elements."""
    return 1 - int(weight.count_nonzero()) / weight.numel() if weight.numel() else 0.0


def choose_format(
    weight: Tensor, config: SparseConfig, dense: bool = True, least: float = MIN_SPARSITY
) -> Choice:
    """The fastest format for a weight at `config.tokens`.

    Args:
        weight: [out, in]. Dense is timed in its dtype, which a dense layer would keep.
        config: dtype of the stored values and token counts; its format is ignored.
        dense: whether "dense" may be chosen; if not, a sparse format is, even a slower one.
        least: share of zeros below which nothing is timed.

    Raises:
        UsageError: The dtype has no kernels on the weight's device.
    """
    backend_of(weight).value_dtype(weight, config.dtype)  # raises for one without kernels
    sparsity = share_of_zeros(weight)
    fallback = "dense" if dense else "csr"
    if sparsity < least:
        reason = f"{sparsity:.0%} zeros, formats are timed from {least:.0%}"
        return Choice(fallback, 1.0, {}, reason)
    stored = weight.to(config.source_dtype)
    specs = candidates(stored, config.tokens, config.dtype)
    if not specs:
        reason = f"no format with a kernel on {weight.device} fits the pattern"
        return Choice(fallback, 1.0, {}, reason)
    key = _key(weight, config, specs, sparsity)
    measured = cache.load(key)
    packed: dict[str, Format] = {}
    source = ", as measured before"
    if measured is None:
        source = ""
        try:
            packed = {spec: _pack(spec, weight, stored, config) for spec in specs}
            measured = _measure(weight, packed, config.tokens, _between(config))
        except torch.OutOfMemoryError:
            reason = "too little memory on the GPU to time formats, which also expands them"
            return Choice(fallback, 1.0, {}, reason)
        cache.store(key, measured)
    scores = _scores(measured, config.tokens)
    best, tie = _smallest_near_best(scores, measured.nbytes, dense)
    listed = ", ".join(
        f"{spec} {scores[spec]:.2f}" for spec in sorted(scores, key=scores.__getitem__)
    )
    reason = f"time over dense: {listed}{tie}{source}"
    return Choice(best, scores[best], measured.times_us, reason, packed.get(best))


def _scores(measured: Measurement, tokens: tuple[int, ...]) -> dict[str, float]:
    """Time over dense time by format, summed over the token counts."""
    totals = {spec: sum(times[t] for t in tokens) for spec, times in measured.times_us.items()}
    return {spec: total / totals["dense"] for spec, total in totals.items()}


def _smallest_near_best(
    scores: dict[str, float], nbytes: dict[str, int], dense: bool
) -> tuple[str, str]:
    """The smallest format within TIE_MARGIN of the fastest, and a remark if they differ."""
    rivals = {spec: score for spec, score in scores.items() if dense or spec != "dense"}
    fastest = min(rivals, key=rivals.__getitem__)
    near = [spec for spec, score in rivals.items() if score <= rivals[fastest] * (1 + TIE_MARGIN)]
    best = min(near, key=lambda spec: (nbytes[spec], rivals[spec]))
    if best == fastest:
        return best, ""
    return best, f"; {best} is smallest of those within {TIE_MARGIN:.0%}"


def _key(weight: Tensor, config: SparseConfig, specs: list[str], sparsity: float) -> dict[str, Any]:
    """What must be equal for a measurement to hold again."""
    backend = backend_of(weight)
    return {
        "method": METHOD,
        "device": backend.device_name(weight.device),
        "isa": _core.active_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sparse_engine": version("sparse-engine"),
        "shape": list(weight.shape),
        "dense": str(weight.dtype).removeprefix("torch."),
        "dtype": backend.value_dtype(weight, config.dtype),
        "tokens": list(config.tokens),
        "formats": specs,
        "sparsity": round(sparsity, 2),
        "between": _between(config),
    }


def _between(config: SparseConfig) -> int | None:
    """Bytes that are read before each sample, in steps of a factor of two."""
    if config.model_bytes is None or config.model_bytes >= FLUSH_BYTES:
        return None
    return 1 << config.model_bytes.bit_length()


def _pack(spec: str, weight: Tensor, stored: Tensor, config: SparseConfig) -> Format:
    """The packed weight of a layer; `stored` is `weight` in the source dtype."""
    plain = FormatSpec.parse(spec).from_dense(stored)
    backend = backend_of(weight)
    return backend.pack(plain, backend.value_dtype(weight, config.dtype), config.tokens)


def _measure(
    weight: Tensor, packed: dict[str, Format], tokens: tuple[int, ...], between: int | None
) -> Measurement:
    times: dict[str, dict[int, float]] = {spec: {} for spec in ("dense", *packed)}
    for count in tokens:
        x = torch.randn(count, weight.shape[1]).to(weight)
        for spec, micros in _time_in_turn(weight, packed, x, between).items():
            times[spec][count] = micros
    sizes = {spec: stored.nbytes for spec, stored in packed.items()}
    return Measurement(times, {"dense": weight.nbytes, **sizes})


def _time_in_turn(
    weight: Tensor, packed: dict[str, Format], x: Tensor, between: int | None
) -> dict[str, float]:
    """Microseconds of a call of dense and of each packing."""
    runs: dict[str, Callable[[], object]] = {"dense": lambda: F.linear(x, weight)}
    for spec, p in packed.items():
        runs[spec] = lambda p=p: run_linear(p, x, None, "none", None)  # type: ignore[misc]
    return backend_of(x).time(runs, x.device, (x,), between=between)
