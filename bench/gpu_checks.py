"""The checks of bench/gpu.py: every kernel in every dtype that it has, against float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from gpu_weights import Setting, pack_as, random_weight
from torch import Tensor

from sparse_engine.formats import Format
from sparse_engine.nn.recurrent.rows import UNIT_TILE, deinterleave_gates, interleave_gates
from sparse_engine.nn.recurrent.weights import GATES
from sparse_engine.ops import linear_kernel, reference, run_linear
from sparse_engine.packings import Ell

DTYPES = ("float32", "float16", "bfloat16", "int8")
# What float32 sums, in any order, may be off, relative to the sum of magnitudes.
SUMS = 4e-6


def in_tolerances(y: Tensor, expected: Tensor, size: Tensor) -> float:
    """The largest error over what is allowed: one rounding to the dtype of y, float32 sums before
    it.

    size: what errors of the sums are relative to.
    """
    info = torch.finfo(y.dtype)
    allowed = info.eps * expected.abs() + SUMS * size + info.tiny
    worst = float(((y.double() - expected).abs() / allowed).max())
    return worst if worst == worst else float("inf")


@dataclass(frozen=True)
class Check:
    """A linear op with a full epilogue, for some numbers of tokens, against float64."""

    format: str
    dtype: str
    tokens: tuple[int, ...]
    shape: tuple[int, int]
    gated: bool = False
    activation: str = "gelu"
    sparsity: float = 0.7

    @property
    def name(self) -> str:
        """What is checked."""
        out, inputs = self.shape
        gated = " gated" if self.gated else ""
        counts = ",".join(map(str, self.tokens))
        return f"{self.format} {self.dtype} {out}x{inputs}{gated} {self.activation} M={counts}"

    def run(self, at: Setting) -> dict[str, Any]:
        """The kernels that ran, and the largest error in tolerances."""
        stored: torch.dtype = getattr(torch, self.dtype)
        dtype = torch.bfloat16 if stored == torch.int8 else stored
        weight = random_weight(*self.shape, self.format, self.sparsity, at, torch.float32)
        packed = pack_as(self.format, weight, stored, self.gated)
        kernels, worst = [], 0.0
        for tokens in self.tokens:
            kernels.append(linear_kernel(packed, tokens).removesuffix(", dense"))
            run = self._expand if kernels[-1].startswith("expand") else self._multiply
            worst = max(worst, run(packed, tokens, at, dtype))
        return {"kernels": list(dict.fromkeys(kernels)), "worst": worst}

    def _multiply(self, packed: Format, tokens: int, at: Setting, dtype: torch.dtype) -> float:
        rows, inputs = self.shape
        x, bias = at.randn(tokens, inputs, dtype=dtype), at.randn(rows, dtype=torch.float32)
        added = at.randn(tokens, rows // 2 if self.gated else rows, dtype=dtype)
        y = run_linear(packed, x, bias, self.activation, added)
        truth, act = packed.to_dense(), reference.ACTIVATIONS[self.activation]
        expected = reference.linear(truth, x, bias)
        size = reference.linear(truth.abs(), x.abs(), bias.abs())
        if self.gated:
            (left, right), (a, b) = expected.chunk(2, 1), size.chunk(2, 1)
            expected, size = act(left) * right, a * right.abs() + b * left.abs()
        else:
            expected = act(expected)
        return in_tolerances(y, expected + added.double(), size + added.double().abs())

    def _expand(self, packed: Any, tokens: int, at: Setting, dtype: torch.dtype) -> float:
        """Only the matrix: the product is torch's."""
        from sparse_engine.kernels import expand_ell, expand_nm

        scales = packed.scales if packed.dtype == torch.int8 else None
        if isinstance(packed, Ell):
            buffers = (packed.values, packed.columns, packed.groups, packed.rows)
            dense = expand_ell(*buffers, packed.shape, dtype, scales)
        else:
            pattern = (packed.values, packed.positions, packed.keep, packed.of)
            dense = expand_nm(*pattern, packed.shape[1], dtype, scales)
        truth = packed.to_dense().double()
        return in_tolerances(dense, truth, torch.zeros_like(truth))


@dataclass(frozen=True)
class StepCheck:
    """One step of a recurrent network against float64."""

    mode: str
    format: str
    dtype: str
    batches: tuple[int, ...]
    units: int

    @property
    def name(self) -> str:
        """What is checked."""
        counts = ",".join(map(str, self.batches))
        return f"{self.mode} {self.format} {self.dtype} {self.units} units M={counts}"

    def run(self, at: Setting) -> dict[str, Any]:
        """The kernel, and the largest error in tolerances."""
        worst = max(self._step(batch, at) for batch in self.batches)
        return {"kernels": ["recurrent_step_kernel"], "worst": worst}

    def _step(self, batch: int, at: Setting) -> float:
        from sparse_engine.kernels import recurrent_step

        gates, units = GATES[self.mode], self.units
        dtype: torch.dtype = getattr(torch, self.dtype)
        rows = gates * -(-units // UNIT_TILE) * UNIT_TILE
        weight = random_weight(rows, units, self.format, 0.6, at, torch.float32) / units**0.5
        packed: Any = pack_as(self.format, weight, dtype)
        inputs = at.randn(batch, gates * units, dtype=dtype)
        h, c = at.randn(batch, units, dtype=dtype), at.randn(batch, units, dtype=torch.float32)
        gru = self.mode == "GRU"
        bias = at.randn(gates * units, dtype=torch.float32) if gru else None
        cell = c.clone() if self.mode == "LSTM" else None
        h_next, y = torch.empty_like(h), torch.empty_like(h)
        recurrent_step(
            self.mode,
            interleave_gates(inputs.T, gates).T.contiguous(),
            h,
            packed.values,
            packed.indices,
            packed.pointers,
            None if bias is None else interleave_gates(bias, gates).contiguous(),
            cell,
            h_next,
            y,
        )
        truth = deinterleave_gates(packed.to_dense(), gates, units)
        state = (h.double(), c.double())
        hidden = reference.linear(truth, h, bias)
        expected = reference.recurrent_step(self.mode, inputs.double(), hidden, state)
        sizes = reference.linear(truth.abs(), h.abs(), None if bias is None else bias.abs())
        sizes = (sizes + inputs.double().abs()).unflatten(1, (gates, units)).sum(1)
        sizes = 1 + sizes * (1 + c.double().abs() + h.double().abs())
        found = [h_next, y] if cell is None else [h_next, y, cell]
        truths = [expected[0], expected[0], expected[-1]]
        return max(in_tolerances(a, b, sizes) for a, b in zip(found, truths, strict=False))


def checks(tiny: bool) -> list[Check | StepCheck]:
    """Every kernel in every dtype that it has, and bfloat16 in all shapes of blocks that are
    measured.
    """
    # Tails on all sides, but rows of x at multiples of 16 bytes, for the tensor memory accelerator.
    shape, wide = ((72, 200), (48, 3208)) if tiny else ((1032, 776), (264, 6152))
    many = 130 if tiny else 300
    few = (1, 7) if tiny else (1, 2, 7)
    blocks = (*few[::2], 20, many)
    found: list[Check | StepCheck] = []
    for dtype in DTYPES:
        found.append(Check("bsr:32x32", dtype, blocks, shape))
        # Rows of blocks that are cut, and added up by a second kernel.
        found.append(Check("bsr:32x32", dtype, (1, 20), wide, sparsity=0.3))
        found += [Check(spec, dtype, (*few, many), shape) for spec in ("csr", "nm:2:4")]
    for spec in ("bsr:16x16", "bsr:64x64", "bsr:128x128", "bsr:128x16", "bsr:128x1"):
        found.append(Check(spec, "bfloat16", blocks, shape))
    found += [Check(spec, "bfloat16", few, shape) for spec in ("nm:1:2", "nm:4:16")]
    found += [Check(spec, "float16", (many,), shape) for spec in ("bsr:64x64", "bsr:128x128")]
    for rows in (32, 64, 128):
        halves = (shape[0] // (2 * rows) * 2 * rows or 2 * rows, shape[1])
        gated = Check(f"bsr:{rows}x{max(32, rows)}", "bfloat16", (1, many), halves, True, "silu")
        found.append(gated)
    found.append(replace(gated, format="bsr:32x32", dtype="float32", shape=(64, shape[1])))
    found.append(
        replace(gated, format="bsr:32x32", tokens=(1, 20), shape=(64, wide[1]), sparsity=0.3)
    )
    for activation in ("none", "relu", "gelu_tanh", "silu"):
        found.append(Check("bsr:32x32", "bfloat16", (20,), shape, activation=activation))
    units = 40 if tiny else 1000
    for mode in GATES:
        found += [StepCheck(mode, "bsr:16x16", dtype, (5,), units) for dtype in DTYPES[:3]]
    found.append(StepCheck("LSTM", "bsr:16x16", "bfloat16", (1, 70), units))
    found.append(StepCheck("LSTM", "bsr:16x1", "bfloat16", (1,), units))
    return found
