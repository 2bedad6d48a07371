"""What the packings of the GPU share: values of any dtype, and scales where they are int8."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats.checks import check_buffer, check_weight, dtype_name
from sparse_engine.packings.cpu.int8 import quantise_rows

NO_TRITON = (
    "sparse layers on CUDA need triton, which is not installed: pip install sparse-engine[gpu]"
)
GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


def as_numbers(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers that will be stored in `dtype`, exactly, as a float weight; and scales.

    scales: float32 [out], by which int8 rows are multiplied; for other dtypes [0]. Raises UsageError for
    what the dtype cannot hold.
    """
    weight = check_weight(weight)
    none = torch.zeros(0, dtype=torch.float32, device=weight.device)
    if dtype == torch.int8:
        integers, scales = quantise_rows(weight)
        return integers.float(), scales
    if dtype not in GPU_DTYPES:
        raise UsageError(f"no kernel on GPUs has weights of {dtype_name(dtype)}")
    numbers = weight if dtype == weight.dtype else weight.to(dtype).float()
    if dtype == torch.float16 and not torch.equal(numbers.isinf(), weight.isinf()):
        raise UsageError("float16 holds numbers up to 65504, and this weight has larger ones")
    return numbers, none


def scaled(dense: Tensor, scales: Tensor) -> Tensor:
    """A dense matrix of stored numbers [out, in] as the weight that it stands for."""
    return dense.float() * scales[:, None] if dense.dtype == torch.int8 else dense


def check_scales(name: str, values: Tensor, scales: Tensor, out_features: int) -> None:
    """Raise InvalidFileError unless there is a finite scale a row beside int8, and none otherwise."""
    count = out_features if values.dtype == torch.int8 else 0
    check_buffer(f"{name} scales", scales, (torch.float32,), (count,), values.device)
    if not bool(torch.isfinite(scales).all()):
        raise InvalidFileError(f"{name} scales: must be finite")
