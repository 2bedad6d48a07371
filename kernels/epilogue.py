"""The epilogue: scale, bias, activation, gate and residual, applied to sums before they are stored.

y = act(scale sums + bias) + residual, or, gated (SwiGLU and its variants, arXiv:2002.05202),
y = act(scale_0 sums_0 + bias_0) (scale_1 sums_1 + bias_1) + residual.
"""

from __future__ import annotations

import triton
import triton.language as tl

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")


@triton.jit
def activate(v: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """An activation of float32 values."""
    if ACTIVATION == "relu":
        v = tl.where(v < 0, 0.0, v)  # maximum would drop NaN
    elif ACTIVATION == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 = sigmoid(2 u)
        v = v * tl.sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))
    elif ACTIVATION == "silu":
        v = v * tl.sigmoid(v)
    return v


@triton.jit
def scaled(
    acc: tl.tensor,  # [TILE, COLS]
    n: tl.tensor,  # [COLS], rows of the weight
    inside: tl.tensor,  # [COLS]
    scales: tl.tensor,
    bias: tl.tensor,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
) -> tl.tensor:
    """scale acc + bias."""
    if HAS_SCALES:
        acc *= tl.load(scales + n, mask=inside, other=0.0)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit
def finish(
    acc: tl.tensor,  # [TILE, COLS] float32
    gate: tl.tensor,  # the same: sums of the second half of the weight's rows, if GATED
    m: tl.tensor,  # [TILE], tokens
    n: tl.tensor,  # [COLS], outputs
    tokens: tl.tensor,
    out_features: tl.tensor,  # of y
    scales: tl.tensor,  # [rows of the weight] float32
    bias: tl.tensor,  # [rows of the weight]
    residual: tl.tensor,  # [tokens, out_features]
    residual_stride: tl.tensor,
    y: tl.tensor,  # [tokens, out_features]
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
) -> None:
    """Write y from the sums."""
    inside = n < out_features
    acc = activate(scaled(acc, n, inside, scales, bias, HAS_SCALES, HAS_BIAS), ACTIVATION)
    if GATED:
        acc *= scaled(gate, n + out_features, inside, scales, bias, HAS_SCALES, HAS_BIAS)
    mask = (m < tokens)[:, None] & inside[None, :]
    rows = m.to(tl.int64)[:, None]
    if HAS_RESIDUAL:
        added = tl.load(residual + rows * residual_stride + n[None, :], mask=mask, other=0.0)
        acc += added.to(tl.float32)
    tl.store(y + rows * out_features + n[None, :], acc.to(y.dtype.element_ty), mask=mask)


@triton.jit
def finish_wide(
    acc: tl.tensor,  # [TILE, COLS]
    gate: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,  # the first of COLS outputs
    tokens: tl.tensor,
    out_features: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    residual_stride: tl.tensor,
    y: tl.tensor,
    TILE: tl.constexpr,
    COLS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
) -> None:
    """`finish` for a large tile, in halves: as a whole it would not fit the registers."""
    if TILE * COLS > 64 * 128:
        left, right = acc.reshape(TILE, 2, COLS // 2).permute(0, 2, 1).split()
        left_gate, right_gate = left, right
        if GATED:
            left_gate, right_gate = gate.reshape(TILE, 2, COLS // 2).permute(0, 2, 1).split()
        finish_wide(
            left, left_gate, m, n, tokens, out_features, scales, bias, residual, residual_stride, y,
            TILE, COLS // 2, ACTIVATION, GATED, HAS_SCALES, HAS_BIAS, HAS_RESIDUAL,
        )  # fmt: skip
        finish_wide(
            right, right_gate, m, n + COLS // 2, tokens, out_features, scales, bias, residual,
            residual_stride, y,
            TILE, COLS // 2, ACTIVATION, GATED, HAS_SCALES, HAS_BIAS, HAS_RESIDUAL,
        )  # fmt: skip
    else:
        finish(
            acc, gate, m, n + tl.arange(0, COLS), tokens, out_features, scales, bias, residual,
            residual_stride, y, ACTIVATION, GATED, HAS_SCALES, HAS_BIAS, HAS_RESIDUAL,
        )  # fmt: skip


@triton.jit
def finish_partials_kernel(
    partials: tl.tensor,  # [parts, tokens, rows of the weight] float32
    parts: tl.tensor,  # int32 [rows of the weight / COLS], partials of each; or one number
    scales: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    tokens: tl.tensor,
    out_features: tl.tensor,
    residual_stride: tl.tensor,
    TILE: tl.constexpr,
    COLS: tl.constexpr,
    UNIFORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
) -> None:
    """Adds up the partial sums of several programs, in a fixed order, and applies the epilogue."""
    column = tl.program_id(0)
    m = tl.program_id(1) * TILE + tl.arange(0, TILE)
    n = column * COLS + tl.arange(0, COLS)
    rows = out_features * 2 if GATED else out_features
    mask = (m < tokens)[:, None] & (n < out_features)[None, :]
    at = partials + m.to(tl.int64)[:, None] * rows + n[None, :]
    # tl.cast, since the compiler makes an argument of 1 a constant, which has no .to.
    layer = tl.cast(tokens, tl.int64) * rows
    acc = tl.zeros((TILE, COLS), dtype=tl.float32)
    gate = acc
    # Unrolled, so that the loads overlap: their latency would exceed all other work.
    count = parts if UNIFORM else tl.load(parts + column)
    for part in tl.range(0, count, loop_unroll_factor=8):
        acc += tl.load(at + part * layer, mask=mask, other=0.0)
    if GATED:
        count = parts if UNIFORM else tl.load(parts + tl.cdiv(out_features, COLS) + column)
        for part in tl.range(0, count, loop_unroll_factor=8):
            gate += tl.load(at + part * layer + out_features, mask=mask, other=0.0)
    finish(
        acc,
        gate,
        m,
        n,
        tokens,
        out_features,
        scales,
        bias,
        residual,
        residual_stride,
        y,
        ACTIVATION,
        GATED,
        HAS_SCALES,
        HAS_BIAS,
        HAS_RESIDUAL,
    )
