"""Linear layer with a BSR weight: y = act(x Wᵀ + bias) + residual.

y[m, rows b + r] = act(sum over blocks j of block row b and columns c of
x[m, cols indices[j] + c] values[j, r, c], plus bias) + residual, with float32 sums.

For few tokens a row of blocks may be split among several programs (plan.py); a second launch adds
up their partial sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .epilogue import finish_wide
from .launch import (
    FUSED,
    INTERPRETED,
    Epilogue,
    cdiv,
    check,
    finish_partials,
    processors,
    shared_bytes,
)
from .linear_bsr_tma import has_tma, linear_bsr_tma, tma_problem, tma_shape_problem
from .multiply import multiply, tile_of
from .plan import BsrPlan, plan_bsr
from .tiles import FEW_TOKENS, choose_config

BLOCK_ROWS = (16, 32, 64, 128)
BLOCK_COLS = (1, 2, 4, 8, 16, 32, 64, 128)


@triton.jit
def linear_bsr_kernel(
    x: tl.tensor,  # [tokens, in_features]
    values: tl.tensor,  # [blocks, ROWS, COLS]
    indices: tl.tensor,  # [blocks]
    pointers: tl.tensor,  # [block rows + 1]
    order: tl.tensor,  # [block rows of y]
    scales: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    tokens: tl.tensor,
    in_features: tl.tensor,
    out_features: tl.tensor,  # of y
    x_row_stride: tl.tensor,
    x_col_stride: tl.tensor,
    residual_stride: tl.tensor,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
    GROUP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """One program: TILE tokens x one row of blocks of y; of a gated weight one of either half."""
    block_rows = tl.cdiv(out_features, ROWS)
    token, block_row = tile_of(
        tl.program_id(0), tokens, out_features, order, TILE, ROWS, GROUP
    )  # fmt: skip
    m = token + tl.arange(0, TILE)  # [TILE]
    inside = m < tokens
    x_rows = x + m.to(tl.int64)[:, None] * x_row_stride
    begin = tl.load(pointers + block_row)
    end = tl.load(pointers + block_row + 1)
    acc = tl.zeros((TILE, ROWS), dtype=tl.float32)
    gate = acc
    acc = multiply(
        acc, x_rows, inside, x_col_stride, values, indices, begin, end, in_features,
        ROWS, COLS, STEP, PRECISION, UPCAST,
    )  # fmt: skip
    if GATED:
        begin = tl.load(pointers + block_rows + block_row)
        end = tl.load(pointers + block_rows + block_row + 1)
        gate = multiply(
            gate, x_rows, inside, x_col_stride, values, indices, begin, end, in_features,
            ROWS, COLS, STEP, PRECISION, UPCAST,
        )  # fmt: skip
    finish_wide(
        acc, gate, m, block_row * ROWS, tokens, out_features, scales, bias, residual,
        residual_stride, y, TILE, ROWS,
        ACTIVATION, GATED, HAS_SCALES, HAS_BIAS, HAS_RESIDUAL,
    )  # fmt: skip


@triton.jit
def linear_bsr_split_kernel(
    x: tl.tensor,  # [tokens, in_features]
    values: tl.tensor,  # [blocks, ROWS, COLS]
    indices: tl.tensor,  # [blocks]
    items: tl.tensor,  # [items, 4]
    partials: tl.tensor,  # [parts, tokens, out_features] float32
    tokens: tl.tensor,
    in_features: tl.tensor,
    out_features: tl.tensor,  # rows of the weight
    x_row_stride: tl.tensor,
    x_col_stride: tl.tensor,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """One program: TILE tokens x one item of the plan, a part of a row of blocks."""
    item = items + tl.program_id(0) * 4
    block_row = tl.load(item)
    begin = tl.load(item + 1)
    end = tl.load(item + 2)
    part = tl.load(item + 3)
    m = tl.program_id(1) * TILE + tl.arange(0, TILE)  # [TILE]
    n = block_row * ROWS + tl.arange(0, ROWS)  # [ROWS]
    inside = m < tokens
    x_rows = x + m.to(tl.int64)[:, None] * x_row_stride
    acc = tl.zeros((TILE, ROWS), dtype=tl.float32)
    acc = multiply(
        acc, x_rows, inside, x_col_stride, values, indices, begin, end, in_features,
        ROWS, COLS, STEP, PRECISION, UPCAST,
    )  # fmt: skip
    rows = part.to(tl.int64) * tokens + m
    at = partials + rows[:, None] * out_features + n[None, :]
    tl.store(at, acc, mask=inside[:, None] & (n < out_features)[None, :])


def linear_bsr(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    pointers: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    out_features: int | None = None,
    scales: Tensor | None = None,
    gated: bool = False,
    plan: BsrPlan | None = None,
) -> Tensor:
    """act(x Wᵀ + bias) + residual for a weight in BSR, without gradients.

    Args:
        x: [tokens, in_features], float32, float16 or bfloat16, on a GPU.
        values: [blocks, rows, cols] in the dtype of x, or int8 with scales; rows are 16, 32, 64 or
            128, cols a power of two up to 128. Elements beyond the matrix are zero.
        indices: int32 [blocks], block columns.
        pointers: int32 [block rows + 1], where each row of blocks starts; rows may be empty.
        bias: [out_features] in the dtype of x or float32.
        activation: none, relu, gelu (with erf), gelu_tanh or silu; None means none.
        residual: [tokens, features of y] in the dtype of x, added last.
        out_features: Rows of the matrix without padding; by default rows * block rows.
        scales: float32 [out_features], the factor of each row.
        gated: y = act(x W0ᵀ + bias0) (x W1ᵀ + bias1) + residual, where W0 is the first half of the
            rows and W1 the second, both of whole blocks.
        plan: From `plan_bsr`. Without one, a plan is made at every call, which synchronises with
            the GPU and cannot be captured in a CUDA graph.

    Returns:
        y [tokens, out_features] in the dtype of x; [tokens, out_features / 2] for a gated weight.

    Raises:
        ValueError: An operand does not fit. The contents of indices and pointers are not checked.
    """
    if out_features is None:
        out_features = (pointers.numel() - 1) * values.shape[1] if values.dim() == 3 else 0
    problem = sparse_problem(values, indices, pointers, out_features, gated)
    buffers = {"indices": indices, "pointers": pointers}
    epilogue = check(
        "linear_bsr", x, values, out_features, buffers,
        activation, gated, scales, bias, residual, problem,
    )  # fmt: skip
    y = epilogue.output(x)
    if y.numel() == 0:
        return y
    rows, cols = values.shape[1:]
    plan = plan or plan_bsr(pointers, rows * cols * values.element_size(), gated)
    if x.shape[0] <= FEW_TOKENS and plan.items is not None and plan.parts is not None:
        _split(x, values, indices, plan, out_features, epilogue, y)
    elif tma_problem(x, values) is None:
        linear_bsr_tma(x, values, indices, pointers, plan.order, epilogue, y)
    else:
        _whole(x, values, indices, pointers, plan.order, epilogue, y)
    return y


def linear_bsr_name(values: Tensor, tokens: int, in_features: int, cut: bool) -> str:
    """Name of the kernel for `tokens` contiguous rows of x; `cut`: the plan has items."""
    if tokens <= FEW_TOKENS and cut:
        return "linear_bsr_split_kernel"
    fits = tma_shape_problem(values, tokens) is None and in_features % 8 == 0
    if fits and has_tma(values.device):
        return "linear_bsr_tma_kernel"
    return "linear_bsr_kernel"


def prepared(x: Tensor, cols: int) -> Tensor:
    """x as the kernel reads it: transposed for narrow blocks and many tokens, else row-major."""
    if cols < 8 and x.shape[0] > FEW_TOKENS:
        return x if x.stride(0) == 1 else x.t().contiguous().t()
    return x if x.stride(1) == 1 else x.contiguous()


def arithmetic(x: Tensor) -> dict[str, object]:
    """Options of tl.dot for the dtype of x."""
    return {
        # One TF32 pass keeps 10 bits of a float32, three passes nearly all.
        "PRECISION": "tf32x3" if x.dtype == torch.float32 else "ieee",
        # The interpreter multiplies the bit patterns of bfloat16.
        "UPCAST": INTERPRETED,
    }


def _whole(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    pointers: Tensor,
    order: Tensor,
    epilogue: Epilogue,
    y: Tensor,
) -> None:
    """Launch a program for each row of blocks of y and tile of tokens."""
    rows, cols = values.shape[1:]
    x = prepared(x, cols)
    config = choose_config(
        x.shape[0],
        rows,
        cols,
        x.element_size(),
        order.numel(),
        epilogue.gated,
        shared_bytes(x.device),
        processors(x.device),
    )
    grid = (cdiv(x.shape[0], config.tile) * order.numel(),)
    with torch.cuda.device_of(x):
        linear_bsr_kernel[grid](
            x,
            values,
            indices,
            pointers,
            order,
            *epilogue.tensors(y),
            x.shape[0],
            x.shape[1],
            epilogue.out_features,
            x.stride(0),
            x.stride(1),
            epilogue.residual_stride,
            TILE=config.tile,
            ROWS=rows,
            COLS=cols,
            STEP=config.step,
            GROUP=8,
            **epilogue.flags,
            **arithmetic(x),
            num_warps=config.warps,
            **FUSED,
            num_stages=config.stages,
        )


def _split(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    plan: BsrPlan,
    out_features: int,
    epilogue: Epilogue,
    y: Tensor,
) -> None:
    """Launch a program for each item and tile of tokens, then add up the partial sums."""
    assert plan.items is not None
    assert plan.parts is not None
    tokens = x.shape[0]
    rows, cols = values.shape[1:]
    x = prepared(x, cols)
    parts, shared = plan.items.shape[0], shared_bytes(x.device)
    config = choose_config(tokens, rows, cols, x.element_size(), parts, shared=shared)
    size = (plan.most * tokens, out_features)
    partials = torch.empty(*size, dtype=torch.float32, device=x.device)
    grid = (plan.items.shape[0], cdiv(tokens, config.tile))
    with torch.cuda.device_of(x):
        linear_bsr_split_kernel[grid](
            x,
            values,
            indices,
            plan.items,
            partials,
            tokens,
            x.shape[1],
            out_features,
            x.stride(0),
            x.stride(1),
            TILE=config.tile,
            ROWS=rows,
            COLS=cols,
            STEP=config.step,
            **arithmetic(x),
            num_warps=config.warps,
            **FUSED,
            num_stages=config.stages,
        )
    finish_partials(partials, plan.parts, rows, epilogue, y)


def sparse_problem(
    values: Tensor, indices: Tensor, pointers: Tensor, out_features: int, gated: bool
) -> str | None:
    """What is wrong with the weight, in one line, or None."""
    if values.dim() != 3:
        return f"values: expected [blocks, rows, cols], got {list(values.shape)}"
    blocks, rows, cols = values.shape
    if rows not in BLOCK_ROWS or cols not in BLOCK_COLS:
        allowed = [", ".join(map(str, sides)) for sides in (BLOCK_ROWS, BLOCK_COLS)]
        return (
            f"blocks of {rows}x{cols}: supported are rows of {allowed[0]} and cols of {allowed[1]}"
        )
    if indices.dtype != torch.int32 or indices.shape != (blocks,):
        found = f"{indices.dtype} {list(indices.shape)}"
        return f"indices: expected torch.int32 [{blocks}], got {found}"
    if pointers.dtype != torch.int32 or pointers.dim() != 1 or pointers.numel() < 1:
        found = f"{pointers.dtype} {list(pointers.shape)}"
        return f"pointers: expected torch.int32 [block rows + 1], got {found}"
    block_rows, halves = pointers.numel() - 1, 2 if gated else 1
    if gated and out_features % (2 * rows):
        return f"out_features: {out_features} are not two halves of rows of {rows}x{cols} blocks"
    if halves * -(-out_features // halves // rows) != block_rows:
        return (
            f"out_features: {out_features} does not fit {block_rows} rows of {rows}x{cols} blocks"
        )
    return None
