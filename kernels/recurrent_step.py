"""One time step of an LSTM, GRU or RNN whose hidden weight is BSR: product and cell in one launch.

One program computes ROWS units of TILE sequences. It multiplies the block row of each of their
gates by the previous h and applies the cell in registers (the equations of torch.nn.LSTM, GRU and
RNN). The input projection of all time steps is one product, computed beforehand.

Block row b x gates + g holds gate g of the units ROWS b .. ROWS b + ROWS - 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import DTYPES, FUSED, cdiv, place_problem, shared_bytes
from .linear_bsr import arithmetic, sparse_problem
from .multiply import multiply
from .tiles import FEW_TOKENS, choose_config

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


@triton.jit
def tanh(v: tl.tensor) -> tl.tensor:
    """2 sigmoid(2 v) - 1: the interpreter has no tanh."""
    return 2.0 * tl.sigmoid(2.0 * v) - 1.0


@triton.jit
def recurrent_step_kernel(
    inputs: tl.tensor,  # [sequences, block rows x ROWS]: W_ih x + b_ih (+ b_hh)
    h: tl.tensor,  # [sequences, features], of the previous step
    values: tl.tensor,  # [blocks, ROWS, COLS]
    indices: tl.tensor,  # [blocks]
    pointers: tl.tensor,  # [block rows + 1]
    bias: tl.tensor,  # [block rows x ROWS], of the hidden product
    c: tl.tensor,  # [sequences, units] float32, of an LSTM; overwritten
    h_next: tl.tensor,  # [sequences, units]
    y: tl.tensor,  # [sequences, units], the same values
    sequences: tl.tensor,
    units: tl.tensor,
    features: tl.tensor,  # of h: the units, or the size of their projection
    inputs_stride: tl.tensor,
    y_stride: tl.tensor,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
    MODE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """One program computes ROWS units of TILE sequences."""
    GATES: tl.constexpr = 4 if MODE == "LSTM" else 3 if MODE == "GRU" else 1
    first = tl.program_id(0) * GATES
    m = tl.program_id(1) * TILE + tl.arange(0, TILE)  # [TILE]
    i = tl.arange(0, ROWS)  # [ROWS]
    n = tl.program_id(0) * ROWS + i
    inside = m < sequences
    mask = inside[:, None] & (n < units)[None, :]
    h_rows = h + m.to(tl.int64)[:, None] * features
    x_rows = inputs + m.to(tl.int64)[:, None] * inputs_stride
    own = m.to(tl.int64)[:, None] * units + n[None, :]
    zeros = tl.zeros((TILE, ROWS), dtype=tl.float32)
    x0 = zeros
    x1 = zeros
    x2 = zeros
    x3 = zeros
    h0 = zeros
    h1 = zeros
    h2 = zeros
    h3 = zeros
    for g in tl.static_range(GATES):
        begin = tl.load(pointers + first + g)
        end = tl.load(pointers + first + g + 1)
        rows = (first + g) * ROWS + i
        x = tl.load(x_rows + rows[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
        v = multiply(
            zeros, h_rows, inside, 1, values, indices, begin, end, features,
            ROWS, COLS, STEP, PRECISION, UPCAST,
        )  # fmt: skip
        if HAS_BIAS:
            v += tl.load(bias + rows)[None, :].to(tl.float32)
        if g == 0:
            x0 = x
            h0 = v
        elif g == 1:
            x1 = x
            h1 = v
        elif g == 2:
            x2 = x
            h2 = v
        else:
            x3 = x
            h3 = v
    if MODE == "LSTM":
        last = tl.load(c + own, mask=mask, other=0.0)
        cell = tl.sigmoid(x1 + h1) * last + tl.sigmoid(x0 + h0) * tanh(x2 + h2)
        tl.store(c + own, cell, mask=mask)
        result = tl.sigmoid(x3 + h3) * tanh(cell)
    elif MODE == "GRU":
        last = tl.load(h_rows + n[None, :], mask=mask, other=0.0).to(tl.float32)
        new = tanh(x2 + tl.sigmoid(x0 + h0) * h2)
        result = new + tl.sigmoid(x1 + h1) * (last - new)
    elif MODE == "RNN_TANH":
        result = tanh(x0 + h0)
    else:
        result = x0 + h0
        result = tl.where(result < 0, 0.0, result)
    stored = result.to(h_next.dtype.element_ty)
    tl.store(h_next + own, stored, mask=mask)
    tl.store(y + m.to(tl.int64)[:, None] * y_stride + n[None, :], stored, mask=mask)


def recurrent_step(
    mode: str,
    inputs: Tensor,
    h: Tensor,
    values: Tensor,
    indices: Tensor,
    pointers: Tensor,
    bias: Tensor | None,
    c: Tensor | None,
    h_next: Tensor,
    y: Tensor,
) -> None:
    """Compute the next h of every sequence, and the next c of an LSTM, without gradients.

    Args:
        mode: LSTM, GRU, RNN_TANH or RNN_RELU.
        inputs: [sequences, block rows x rows]: W_ih x + b_ih, and b_hh if `bias` is None.
        h: [sequences, features] of the previous step, contiguous, float32, float16 or bfloat16.
        values, indices, pointers: The hidden weight as in `linear_bsr`, in the dtype of h. It has
            ceil(units / rows) x gates block rows.
        bias: float32 [block rows x rows], added to the hidden product. A GRU passes it separately
            from `inputs`, because the reset gate scales it.
        c: float32 [sequences, units] of an LSTM, contiguous; overwritten. None for other modes.
        h_next: [sequences, units], contiguous; written. It must not be h.
        y: [sequences, units] with contiguous rows; written with the same values.

    Raises:
        ValueError: An argument does not fit. The values of indices and pointers are not checked.
    """
    sequences, units = h_next.shape
    problem = _problem(mode, inputs, h, values, indices, pointers, bias, c, h_next, y)
    if problem:
        raise ValueError(f"recurrent_step: {problem}")
    if h_next.numel() == 0:
        return
    rows, cols = values.shape[1:]
    blocks = (pointers.numel() - 1) // GATES[mode]
    few, shared = min(sequences, FEW_TOKENS), shared_bytes(h.device)
    config = choose_config(few, rows, cols, h.element_size(), blocks, shared=shared)
    with torch.cuda.device_of(h):
        recurrent_step_kernel[(blocks, cdiv(sequences, config.tile))](
            inputs,
            h,
            values,
            indices,
            pointers,
            h if bias is None else bias,
            h if c is None else c,
            h_next,
            y,
            sequences,
            units,
            h.shape[1],
            inputs.stride(0),
            y.stride(0),
            TILE=config.tile,
            ROWS=rows,
            COLS=cols,
            STEP=config.step,
            MODE=mode,
            HAS_BIAS=bias is not None,
            **arithmetic(h),
            num_warps=4,
            **FUSED,
            num_stages=config.stages,
        )


def _problem(
    mode: str,
    inputs: Tensor,
    h: Tensor,
    values: Tensor,
    indices: Tensor,
    pointers: Tensor,
    bias: Tensor | None,
    c: Tensor | None,
    h_next: Tensor,
    y: Tensor,
) -> str | None:
    """The first argument that does not fit, in one line, or None."""
    if mode not in GATES:
        return f"mode: expected one of {', '.join(GATES)}, got {mode!r}"
    sequences, units = h_next.shape
    rows = values.shape[1] if values.dim() == 3 else 1
    features = -(-units // rows) * rows * GATES[mode]
    problem = sparse_problem(values, indices, pointers, features, gated=False)
    if problem:
        return problem
    if h.dtype not in DTYPES or values.dtype != h.dtype:
        return f"h: expected {values.dtype} as the weight has, got {h.dtype}"
    wanted: dict[str, tuple[Tensor, tuple[int, ...], torch.dtype | None]] = {
        "inputs": (inputs, (sequences, features), None),
        "h": (h, (sequences, h.shape[-1]), h.dtype),
        "h_next": (h_next, (sequences, units), h.dtype),
        "y": (y, (sequences, units), h.dtype),
    }
    if mode == "LSTM":
        if c is None:
            return "c: an LSTM needs one"
        wanted["c"] = (c, (sequences, units), torch.float32)
    if bias is not None:
        wanted["bias"] = (bias, (features,), torch.float32)
    for name, (tensor, shape, dtype) in wanted.items():
        if tuple(tensor.shape) != shape or (dtype is not None and tensor.dtype != dtype):
            found = f"{tensor.dtype} {list(tensor.shape)}"
            return f"{name}: expected {dtype or 'floats'} {list(shape)}, got {found}"
        if tensor.stride(-1) != 1 and tensor.numel() > 1:
            return f"{name}: rows are not contiguous (strides {tensor.stride()})"
    packed = {"h": h, "c": c, "h_next": h_next, "values": values}
    packed |= {"indices": indices, "pointers": pointers}
    for name, given in packed.items():
        if given is not None and not given.is_contiguous():
            return f"{name}: is not contiguous (strides {given.stride()})"
    if h.data_ptr() == h_next.data_ptr() and h.numel():
        return "h_next: is h itself, which other programs still read"
    return place_problem(h, (inputs, values, indices, pointers, bias, c, h_next, y))
