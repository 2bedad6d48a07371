"""Checks on weights and on format buffers; each failure is one line: what was expected, what found.

Types and sizes are checked first, so that nothing is allocated for buffers that cannot fit.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError

INT32_MAX = 2**31 - 1
VALUE_DTYPES = (torch.float32, torch.bfloat16)


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` -> `"float32"`."""
    return str(dtype).removeprefix("torch.")


def check_weight(weight: Tensor) -> Tensor:
    """Return `weight` without its graph, or raise UsageError if no format can hold it."""
    if not isinstance(weight, Tensor) or weight.layout != torch.strided:
        kind = weight.layout if isinstance(weight, Tensor) else type(weight).__name__
        raise UsageError(f"weight: expected a dense tensor, got {kind}")
    if weight.is_meta:
        raise UsageError("weight is on the meta device and has no values: load it first")
    if weight.dim() != 2:
        raise UsageError(f"weight: expected 2 dimensions [out, in], got {list(weight.shape)}")
    if weight.dtype not in VALUE_DTYPES:
        raise UsageError(f"weight: expected float32 or bfloat16, got {dtype_name(weight.dtype)}")
    if max(weight.shape) > INT32_MAX:
        raise UsageError(f"weight {list(weight.shape)}: a side exceeds int32 ({INT32_MAX})")
    return weight.detach()


def check_count(what: str, count: int) -> None:
    """Raise UsageError if `count` items cannot be numbered in int32."""
    if count > INT32_MAX:
        raise UsageError(f"{what}: {count} do not fit int32 ({INT32_MAX}); split the weight")


def check_shape(name: str, shape: object) -> None:
    """Raise InvalidFileError unless `shape` is (out, in) with both sides in 0..2^31-1."""
    ok = isinstance(shape, tuple) and len(shape) == 2 and all(type(side) is int for side in shape)
    if not ok:
        raise InvalidFileError(f"{name} shape: expected two integers (out, in), got {shape!r}")
    if not all(0 <= side <= INT32_MAX for side in shape):  # type: ignore[attr-defined]
        raise InvalidFileError(f"{name} shape: sides must lie in 0..{INT32_MAX}, got {shape}")


def check_names(what: str, got: Iterable[str], expected: tuple[str, ...]) -> None:
    """Raise InvalidFileError unless `got` holds exactly the `expected` names, in any order."""
    if sorted(got) != sorted(expected):
        raise InvalidFileError(f"{what}: expected {sorted(expected)}, got {sorted(got)}")


def check_buffer(
    what: str,
    tensor: object,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | str, ...],
    device: torch.device | None = None,
) -> None:
    """Raise InvalidFileError unless `tensor` fits `shape` (a str is any size) and the rest."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        kind = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InvalidFileError(f"{what}: expected a dense tensor, got {kind}")
    if tensor.dtype not in dtypes:
        names = " or ".join(dtype_name(dtype) for dtype in dtypes)
        raise InvalidFileError(f"{what}: expected {names}, got {dtype_name(tensor.dtype)}")
    wanted = f"[{', '.join(str(side) for side in shape)}]"
    if tensor.dim() != len(shape):
        raise InvalidFileError(
            f"{what}: expected {len(shape)} dimensions {wanted}, got {list(tensor.shape)}"
        )
    sides = zip(tensor.shape, shape, strict=True)
    if any(isinstance(want, int) and got != want for got, want in sides):
        raise InvalidFileError(f"{what}: expected shape {wanted}, got {list(tensor.shape)}")
    if not tensor.is_contiguous():
        raise InvalidFileError(f"{what}: buffer is not contiguous (strides {tensor.stride()})")
    if tensor.is_meta:
        raise InvalidFileError(f"{what}: is on the meta device and has no data")
    if device is not None and tensor.device != device:
        raise InvalidFileError(f"{what}: is on {tensor.device}, the values are on {device}")


def first(flags: Tensor) -> int | None:
    """Flat position of the first True, or None."""
    if not bool(flags.any()):
        return None
    return int(flags.reshape(-1).to(torch.uint8).argmax())


def check_pointers(what: str, pointers: Tensor, count: int) -> None:
    """Raise InvalidFileError unless `pointers` start at 0, never fall and end at `count`."""
    if int(pointers[0]) != 0:
        raise InvalidFileError(f"{what}: must start at 0, got {int(pointers[0])}")
    # Compared, not subtracted: a difference of two int32 may wrap around.
    falls = first(pointers[1:] < pointers[:-1])
    if falls is not None:
        pair = pointers[falls : falls + 2].tolist()
        raise InvalidFileError(f"{what}: falls from {pair[0]} to {pair[1]} after row {falls}")
    if int(pointers[-1]) != count:
        raise InvalidFileError(f"{what}: must end at {count}, got {int(pointers[-1])}")


def check_range(what: str, indices: Tensor, limit: int) -> None:
    """Raise InvalidFileError unless every index lies in 0..limit-1."""
    at = first((indices < 0) | (indices >= limit))
    if at is not None:
        value = int(indices.reshape(-1)[at])
        raise InvalidFileError(f"{what}: entry {at} is {value}, outside 0..{limit - 1}")


def check_increasing(what: str, indices: Tensor, pointers: Tensor) -> None:
    """Raise InvalidFileError unless indices rise strictly inside each row; `pointers` are valid."""
    if indices.numel() < 2:
        return
    starts = torch.zeros(indices.numel() + 1, dtype=torch.bool, device=indices.device)
    starts[pointers.long()] = True
    at = first((indices[1:] <= indices[:-1]) & ~starts[1:-1])
    if at is not None:
        row = int(torch.searchsorted(pointers, at, right=True)) - 1
        pair = indices[at : at + 2].tolist()
        raise InvalidFileError(
            f"{what}: must increase strictly within a row; row {row} has {pair[0]}, then {pair[1]}"
        )


def check_zero(what: str, padding: Tensor) -> None:
    """Raise InvalidFileError unless all of `padding` is zero."""
    count = int(padding.count_nonzero())
    if count:
        raise InvalidFileError(f"{what}: padding outside the matrix must be 0, {count} are not")
