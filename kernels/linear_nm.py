"""Linear layer with an N:M weight, for few tokens: `keep` values in every group of `of` columns.

W[r, of (v // keep) + position[r, v]] = values[r, v], as in the N:M format. A position has 1, 2 or 4
bits; the first position of a byte is in its lowest bits. 2:4 is arXiv:2104.08378.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .epilogue import finish
from .launch import FUSED, cdiv, check, device_problem, power_of_2
from .panel import load_panel, unpack

# Bits of a position, by the size of a group.
BITS = {2: 1, 4: 2, 8: 4, 16: 4}
# Values of a step, and upper bounds of its columns and of the tokens of a pass over the weight.
ELEMENTS, MAX_WIDTH, MAX_PASS = 2048, 1024, 4


@triton.jit
def load_columns(
    positions: tl.tensor,
    rows: tl.tensor,  # [ROWS, 1, 1] int64
    first: tl.tensor,  # word
    words: tl.tensor,  # bytes of a row
    exists: tl.tensor,  # [ROWS, 1, 1]
    WORDS: tl.constexpr,
    KEEP: tl.constexpr,
    OF: tl.constexpr,
    BITS: tl.constexpr,
) -> tl.tensor:
    """Columns relative to the first group of the first word, int32 [ROWS, WORDS, 8 / BITS]."""
    EACH: tl.constexpr = 8 // BITS  # positions of a byte
    word = tl.arange(0, WORDS)[None, :, None]
    each = tl.arange(0, EACH)[None, None, :]
    mask = exists & (first + word < words)
    code = tl.load(positions + rows * words + first + word, mask=mask, other=0).to(tl.int32)
    return (word * EACH + each) // KEEP * OF + ((code >> (each * BITS)) & (OF - 1))


@triton.jit
def sums_nm(
    x: tl.tensor,  # pointer to the first token
    x_stride: tl.tensor,
    left: tl.tensor,  # tokens from the first one on
    in_features: tl.tensor,
    values: tl.tensor,
    positions: tl.tensor,
    r: tl.tensor,  # [ROWS], rows of the weight
    inside: tl.tensor,  # [ROWS]
    words: tl.tensor,
    PASS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    KEEP: tl.constexpr,
    OF: tl.constexpr,
    BITS: tl.constexpr,
    BFLOAT16: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """x Wᵀ for up to four tokens, float32 [ROWS] each."""
    EACH: tl.constexpr = 8 // BITS
    WIDTH: tl.constexpr = WORDS * EACH // KEEP * OF
    rows = r.to(tl.int64)[:, None, None]
    exists = inside[:, None, None]
    word = tl.arange(0, WORDS)[None, :, None]
    each = tl.arange(0, EACH)[None, None, :]
    acc0 = tl.zeros((ROWS, WORDS, EACH), dtype=tl.float32)
    acc1 = acc0
    acc2 = acc0
    acc3 = acc0
    # tl.range, since loops without tl.dot are not pipelined by the launch option.
    for first in tl.range(0, words, WORDS, num_stages=3):
        column = first * EACH // KEEP * OF
        limit = in_features - column
        filled = exists & (first + word < words)
        at = (rows * words + first + word) * EACH + each
        v = tl.load(values + at, mask=filled, other=0.0).to(tl.float32)
        columns = load_columns(positions, rows, first, words, exists, WORDS, KEEP, OF, BITS)
        columns = columns.reshape(ROWS * WORDS * EACH)
        panel = load_panel(x + column, x_stride, limit, left, WIDTH, PASS > 1)
        picked = tl.gather(panel, columns, 0).reshape(ROWS, WORDS, EACH)
        if PASS == 1:
            acc0 += v * picked
        else:
            low, high = unpack(picked, BFLOAT16)
            acc0 += v * low
            acc1 += v * high
            if PASS == 4:
                two = x + 2 * x_stride + column
                panel = load_panel(two, x_stride, limit, left - 2, WIDTH, PASS > 1)
                picked = tl.gather(panel, columns, 0).reshape(ROWS, WORDS, EACH)
                low, high = unpack(picked, BFLOAT16)
                acc2 += v * low
                acc3 += v * high
    return (
        tl.sum(tl.sum(acc0, 2), 1),
        tl.sum(tl.sum(acc1, 2), 1),
        tl.sum(tl.sum(acc2, 2), 1),
        tl.sum(tl.sum(acc3, 2), 1),
    )


@triton.jit
def linear_nm_kernel(
    x: tl.tensor,  # [tokens, in_features]
    values: tl.tensor,  # [weight rows, words x 8 / BITS]
    positions: tl.tensor,  # [weight rows, words] uint8
    scales: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    tokens: tl.tensor,
    in_features: tl.tensor,
    out_features: tl.tensor,  # of y
    words: tl.tensor,
    x_stride: tl.tensor,
    residual_stride: tl.tensor,
    PASS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    KEEP: tl.constexpr,
    OF: tl.constexpr,
    BITS: tl.constexpr,
    BFLOAT16: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
) -> None:
    """One program: ROWS rows of y and PASS tokens."""
    token = tl.program_id(1) * PASS
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = r < out_features
    x += token.to(tl.int64) * x_stride
    sums = sums_nm(
        x, x_stride, tokens - token, in_features, values, positions, r, inside, words,
        PASS, ROWS, WORDS, KEEP, OF, BITS, BFLOAT16,
    )  # fmt: skip
    gates = sums
    if GATED:
        gates = sums_nm(
            x, x_stride, tokens - token, in_features, values, positions, r + out_features, inside,
            words, PASS, ROWS, WORDS, KEEP, OF, BITS, BFLOAT16,
        )  # fmt: skip
    for t in tl.static_range(PASS):
        finish(
            sums[t][None, :], gates[t][None, :], token + t + tl.arange(0, 1), r, tokens,
            out_features, scales, bias, residual, residual_stride, y,
            ACTIVATION, GATED, HAS_SCALES, HAS_BIAS, HAS_RESIDUAL,
        )  # fmt: skip


@triton.jit
def expand_nm_kernel(
    values: tl.tensor,  # [out_features, words x 8 / BITS]
    positions: tl.tensor,  # [out_features, words] uint8
    scales: tl.tensor,  # [out_features]
    dense: tl.tensor,  # [out_features, in_features], zeros
    in_features: tl.tensor,
    out_features: tl.tensor,
    words: tl.tensor,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    KEEP: tl.constexpr,
    OF: tl.constexpr,
    BITS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
) -> None:
    """One program: writes the values of ROWS rows and WORDS words to the dense matrix."""
    EACH: tl.constexpr = 8 // BITS
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * WORDS
    rows = r.to(tl.int64)[:, None, None]
    exists = (r < out_features)[:, None, None]
    word = tl.arange(0, WORDS)[None, :, None]
    each = tl.arange(0, EACH)[None, None, :]
    filled = exists & (first + word < words)
    v = tl.load(values + (rows * words + first + word) * EACH + each, mask=filled, other=0.0)
    columns = load_columns(positions, rows, first, words, exists, WORDS, KEEP, OF, BITS)
    filled = filled & (v != 0)
    w = v.to(tl.float32)
    if HAS_SCALES:
        w *= tl.load(scales + r, mask=r < out_features, other=0.0)[:, None, None]
    at = dense + rows * in_features + (first * EACH // KEEP * OF + columns)
    tl.store(at, w.to(dense.dtype.element_ty), mask=filled)


def linear_nm(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    keep: int,
    of: int,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    scales: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """act(x Wᵀ + bias) + residual for an N:M weight, without gradients.

    For few tokens: the weight is read once for 4 tokens of 16 bits, or for each token in float32.
    For many tokens, `expand_nm` makes the matrix of a dense product.

    Args:
        x: [tokens, in_features], float32, float16 or bfloat16, on a GPU.
        values: [out_features, n] in the dtype of x, or int8 with scales; n is a multiple of the
            positions in a byte. Values beyond the last column, or that fill a group, are zero.
        positions: uint8 [out_features, n x bits / 8].
        keep: Values of a group, a power of two up to `of`.
        of: Columns of a group: 2, 4, 8 or 16, for which a position has 1, 2, 4 or 4 bits.
        bias, activation, residual, scales, gated: As in `linear_bsr`.

    Returns:
        y [tokens, out_features] in the dtype of x; [tokens, out_features / 2] for a gated weight.

    Raises:
        ValueError: An operand does not fit. The positions are not checked.
    """
    problem = _problem(values, positions, keep, of)
    out_features = values.shape[0]
    if problem is None and x.dim() == 2 and x.shape[1] > values.shape[1] // keep * of:
        problem = f"x: has {x.shape[1]} features, the {values.shape[1]} values of a row span fewer"
    epilogue = check(
        "linear_nm", x, values, out_features, {"positions": positions},
        activation, gated, scales, bias, residual, problem,
    )  # fmt: skip
    y = epilogue.output(x)
    if y.numel() == 0:
        return y
    tokens, in_features = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    single = x.dtype == torch.float32  # two tokens of 16 bits share a gather
    pass_tokens = 1 if single else min(MAX_PASS, power_of_2(tokens))
    shape = tile_shape(keep, of)
    grid = (cdiv(epilogue.out_features, shape["ROWS"]), cdiv(tokens, pass_tokens))
    with torch.cuda.device_of(x):
        linear_nm_kernel[grid](
            x,
            values,
            positions,
            *epilogue.tensors(y),
            tokens,
            in_features,
            epilogue.out_features,
            positions.shape[1],
            x.stride(0),
            epilogue.residual_stride,
            PASS=pass_tokens,
            BFLOAT16=x.dtype == torch.bfloat16,
            **shape,
            **epilogue.flags,
            num_warps=4,
            **FUSED,
        )
    return y


def expand_nm(
    values: Tensor,
    positions: Tensor,
    keep: int,
    of: int,
    in_features: int,
    dtype: torch.dtype,
    scales: Tensor | None = None,
) -> Tensor:
    """The dense matrix [out, in] in `dtype` on the values' device; arguments as `linear_nm`."""
    problem = _problem(values, positions, keep, of)
    problem = problem or device_problem(values.device)
    if problem:
        raise ValueError(f"expand_nm: {problem}")
    out_features, words = positions.shape
    dense = torch.zeros(out_features, in_features, dtype=dtype, device=values.device)
    shape = tile_shape(keep, of)
    grid = (cdiv(out_features, shape["ROWS"]), cdiv(words, shape["WORDS"]))
    if dense.numel() and words:
        with torch.cuda.device_of(values):
            expand_nm_kernel[grid](
                values,
                positions,
                values if scales is None else scales,
                dense,
                in_features,
                out_features,
                words,
                **shape,
                HAS_SCALES=scales is not None,
                num_warps=4,
                **FUSED,
            )
    return dense


def tile_shape(keep: int, of: int) -> dict[str, int]:
    """The compile-time constants of a pattern: 128 values of 16 rows, or what MAX_WIDTH allows."""
    each = 8 // BITS[of]
    count = min(128, MAX_WIDTH // of * keep)
    return {
        "ROWS": ELEMENTS // count,
        "WORDS": count // each,
        "KEEP": keep,
        "OF": of,
        "BITS": BITS[of],
    }


def _problem(values: Tensor, positions: Tensor, keep: int, of: int) -> str | None:
    """What is wrong with the weight, in one line, or None."""
    if of not in BITS or not 1 <= keep <= of or keep & (keep - 1):
        return f"{keep}:{of}: supported are powers of two, in groups of up to 16"
    if values.dim() != 2:
        return f"values: expected [out_features, n], got {list(values.shape)}"
    each = 8 // BITS[of]
    shape = (values.shape[0], values.shape[1] // each)
    if values.shape[1] % each or positions.dtype != torch.uint8 or positions.shape != shape:
        wanted = f"torch.uint8 {list(shape)} for values in multiples of {each}"
        return f"positions: expected {wanted}, got {positions.dtype} {list(positions.shape)}"
    return None
