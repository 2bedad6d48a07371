"""Linear layer with an unstructured weight, for few tokens: ELLPACK by panels of 255 columns.

The columns of the weight are split into panels of 255, so that a column index within a panel fits a
byte; 255 marks an empty slot, where x counts as zero. Within a panel the rows are sorted by their
number of non-zeros and grouped by ROWS, one row a lane. A group has as many slots as its longest
row. Rows of about equal length share a group, so few slots are empty. A program multiplies one
group; a second launch adds up the sums of the panels.

Slot l of lane r of group g holds values[start[g] + l, r] of the row rows[g, r], in the column
255 panel[g] + columns[start[g] + l, r].
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import FUSED, cdiv, check, device_problem, finish_partials, power_of_2
from .panel import load_panel, unpack

ROWS = 128
WIDTH = 255
# Slots of a step: 8 elements a thread, so that a load has 16 bytes.
SLOTS = 8
# Tokens of one pass over the weight, at most.
MAX_PASS = 4


@triton.jit
def linear_ell_kernel(
    x: tl.tensor,  # [tokens, in_features]
    values: tl.tensor,  # [slots, ROWS]
    columns: tl.tensor,  # [slots, ROWS] uint8
    groups: tl.tensor,  # [groups, 3] int32: panel, first slot, slots
    rows: tl.tensor,  # [groups, ROWS], rows of the weight; out_features or more in an empty lane
    partials: tl.tensor,  # [panels, tokens, out_features] float32
    tokens: tl.tensor,
    in_features: tl.tensor,
    out_features: tl.tensor,
    x_stride: tl.tensor,
    PASS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BFLOAT16: tl.constexpr,
) -> None:
    """One program: a group and PASS tokens."""
    group = tl.program_id(0)
    panel = tl.load(groups + group * 3)
    start = tl.load(groups + group * 3 + 1).to(tl.int64)
    count = tl.load(groups + group * 3 + 2)
    token = tl.program_id(1) * PASS
    x += token.to(tl.int64) * x_stride + panel * WIDTH
    left = tokens - token
    limit = tl.minimum(in_features - panel * WIDTH, WIDTH)
    panel_x = load_panel(x, x_stride, limit, left, WIDTH + 1, PASS > 1)
    if PASS == 4:
        panel_x2 = load_panel(x + 2 * x_stride, x_stride, limit, left - 2, WIDTH + 1, PASS > 1)
    slot = tl.arange(0, SLOTS)[:, None]
    lane = tl.arange(0, ROWS)[None, :]
    acc0 = tl.zeros((SLOTS, ROWS), dtype=tl.float32)
    acc1 = acc0
    acc2 = acc0
    acc3 = acc0
    # tl.range, since loops without tl.dot are not pipelined by the launch option.
    for first in tl.range(0, count, SLOTS, num_stages=3):
        filled = first + slot < count
        at = (start + first) * ROWS + slot * ROWS + lane
        v = tl.load(values + at, mask=filled, other=0.0).to(tl.float32)
        column = tl.load(columns + at, mask=filled, other=WIDTH).to(tl.int32)
        column = column.reshape(SLOTS * ROWS)
        picked = tl.gather(panel_x, column, 0).reshape(SLOTS, ROWS)
        if PASS == 1:
            acc0 += v * picked
        else:
            low, high = unpack(picked, BFLOAT16)
            acc0 += v * low
            acc1 += v * high
            if PASS == 4:
                low, high = unpack(tl.gather(panel_x2, column, 0).reshape(SLOTS, ROWS), BFLOAT16)
                acc2 += v * low
                acc3 += v * high
    row = tl.load(rows + group * ROWS + tl.arange(0, ROWS)).to(tl.int32)
    y = partials + (panel.to(tl.int64) * tokens + token) * out_features + row
    tl.store(y, tl.sum(acc0, 0), mask=row < out_features)
    # `left` is part of the limits: the interpreter has no mask of a row & a scalar.
    if PASS >= 2:
        tl.store(y + out_features, tl.sum(acc1, 0), mask=row < tl.where(left > 1, out_features, 0))
    if PASS == 4:
        y += 2 * out_features
        tl.store(y, tl.sum(acc2, 0), mask=row < tl.where(left > 2, out_features, 0))
        tl.store(y + out_features, tl.sum(acc3, 0), mask=row < tl.where(left > 3, out_features, 0))


@triton.jit
def expand_ell_kernel(
    values: tl.tensor,  # [slots, ROWS]
    columns: tl.tensor,  # [slots, ROWS] uint8
    groups: tl.tensor,  # [groups, 3] int32
    rows: tl.tensor,  # [groups, ROWS]
    scales: tl.tensor,  # [out_features]
    dense: tl.tensor,  # [out_features, in_features], zeros
    in_features: tl.tensor,
    out_features: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
) -> None:
    """One program: writes the non-zeros of a group to the dense matrix."""
    group = tl.program_id(0)
    panel = tl.load(groups + group * 3)
    start = tl.load(groups + group * 3 + 1).to(tl.int64)
    count = tl.load(groups + group * 3 + 2)
    row = tl.load(rows + group * ROWS + tl.arange(0, ROWS)).to(tl.int32)
    exists = row < out_features
    slot = tl.arange(0, SLOTS)[:, None]
    lane = tl.arange(0, ROWS)[None, :]
    target = dense + row.to(tl.int64)[None, :] * in_features + panel * WIDTH
    for first in range(0, count, SLOTS):
        filled = (first + slot < count) & exists[None, :]
        at = (start + first) * ROWS + slot * ROWS + lane
        v = tl.load(values + at, mask=filled, other=0.0)
        column = tl.load(columns + at, mask=filled, other=WIDTH).to(tl.int32)
        filled = filled & (column < WIDTH)
        w = v.to(tl.float32)
        if HAS_SCALES:
            w *= tl.load(scales + row, mask=exists, other=0.0)[None, :]
        tl.store(target + column, w.to(dense.dtype.element_ty), mask=filled)


def linear_ell(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    groups: Tensor,
    rows: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    scales: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """act(x Wᵀ + bias) + residual for a weight in ELLPACK by panels, without gradients.

    For few tokens: the weight is read once for 4 tokens of 16 bits, or for each token in float32.
    For many tokens, `expand_ell` makes the matrix of a dense product.

    Args:
        x: [tokens, in_features], float32, float16 or bfloat16, on a GPU.
        values: [slots, 128] in the dtype of x, or int8 with scales; zero where a slot is empty.
        columns: uint8 [slots, 128], within the panel; 255 marks an empty slot.
        groups: int32 [groups, 3]: panel, first slot, number of slots. A panel's groups hold all
            rows.
        rows: uint16 or int32 [groups, 128]: rows of the weight; out_features or more in an empty
            lane.
        out_features: Rows of the weight.
        bias, activation, residual, scales, gated: As in `linear_bsr`.

    Returns:
        y [tokens, out_features] in the dtype of x; [tokens, out_features / 2] for a gated weight.

    Raises:
        ValueError: An operand does not fit. The contents of columns, groups and rows are not
            checked.
    """
    problem = _problem(values, columns, groups, rows)
    buffers = {"columns": columns, "groups": groups, "rows": rows}
    epilogue = check(
        "linear_ell", x, values, out_features, buffers,
        activation, gated, scales, bias, residual, problem,
    )  # fmt: skip
    y = epilogue.output(x)
    if y.numel() == 0:
        return y
    tokens, in_features = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    panels = cdiv(in_features, WIDTH)
    size = (panels * tokens, out_features)
    partials = torch.empty(*size, dtype=torch.float32, device=x.device)
    single = x.dtype == torch.float32  # two tokens of 16 bits share a gather
    pass_tokens = 1 if single else min(MAX_PASS, power_of_2(tokens))
    if groups.shape[0]:
        with torch.cuda.device_of(x):
            linear_ell_kernel[(groups.shape[0], cdiv(tokens, pass_tokens))](
                x,
                values,
                columns,
                groups,
                rows,
                partials,
                tokens,
                in_features,
                out_features,
                x.stride(0),
                PASS=pass_tokens,
                ROWS=ROWS,
                WIDTH=WIDTH,
                SLOTS=SLOTS,
                BFLOAT16=x.dtype == torch.bfloat16,
                num_warps=4,
                **FUSED,
            )
    finish_partials(partials, panels, ROWS, epilogue, y)
    return y


def expand_ell(
    values: Tensor,
    columns: Tensor,
    groups: Tensor,
    rows: Tensor,
    shape: tuple[int, int],
    dtype: torch.dtype,
    scales: Tensor | None = None,
) -> Tensor:
    """The dense matrix [out, in] in `dtype` on the values' device; arguments as `linear_ell`."""
    problem = _problem(values, columns, groups, rows)
    problem = problem or device_problem(values.device)
    if problem:
        raise ValueError(f"expand_ell: {problem}")
    dense = torch.zeros(shape, dtype=dtype, device=values.device)
    if dense.numel():
        with torch.cuda.device_of(values):
            expand_ell_kernel[(groups.shape[0],)](
                values,
                columns,
                groups,
                rows,
                values if scales is None else scales,
                dense,
                shape[1],
                shape[0],
                ROWS=ROWS,
                WIDTH=WIDTH,
                SLOTS=SLOTS,
                HAS_SCALES=scales is not None,
                num_warps=4,
                **FUSED,
            )
    return dense


def _problem(values: Tensor, columns: Tensor, groups: Tensor, rows: Tensor) -> str | None:
    """What is wrong with the weight, in one line, or None."""
    if values.dim() != 2 or values.shape[1] != ROWS:
        return f"values: expected [slots, {ROWS}], got {list(values.shape)}"
    if columns.dtype != torch.uint8 or columns.shape != values.shape:
        found = f"{columns.dtype} {list(columns.shape)}"
        return f"columns: expected torch.uint8 {list(values.shape)}, got {found}"
    if groups.dtype != torch.int32 or groups.dim() != 2 or groups.shape[1] != 3:
        return f"groups: expected torch.int32 [groups, 3], got {groups.dtype} {list(groups.shape)}"
    if rows.dtype not in (torch.uint16, torch.int32) or rows.shape != (groups.shape[0], ROWS):
        wanted = f"torch.uint16 or torch.int32 [{groups.shape[0]}, {ROWS}]"
        return f"rows: expected {wanted}, got {rows.dtype} {list(rows.shape)}"
    return None
