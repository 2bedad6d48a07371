"""Where a packed weight is multiplied: on the CPU, or on a GPU through CUDA.

>>> packed = backend_of(x).pack(weight)
>>> y = backend_of_packing(packed).linear(packed, x, bias, "gelu", None)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sparse_engine.backends.base import Backend
from sparse_engine.backends.cpu import CPUBackend
from sparse_engine.backends.cuda import CUDABackend
from sparse_engine.backends.meta import MetaBackend
from sparse_engine.errors import UsageError
from sparse_engine.formats import FORMATS, Format

CPU, CUDA, META = CPUBackend(), CUDABackend(), MetaBackend()
BACKENDS: tuple[Backend, ...] = (CPU, CUDA)
WEIGHT_CLASSES: tuple[type[Format], ...] = tuple(
    {cls.name: cls for cls in (*FORMATS, *CPU.packings, *CUDA.packings)}.values()
)
"""Every class that a layer's weight may have; of SELL-P the packing, whose buffers are the same."""

_by_device: dict[str, Backend] = {backend.name: backend for backend in (*BACKENDS, META)}
_by_packing: dict[type[Format], Backend] = {
    packing: backend for backend in BACKENDS for packing in backend.packings
}


def backend_of(where: Tensor | torch.device) -> Backend:
    """The backend of a tensor's device; raises UsageError for devices without kernels."""
    device = where if isinstance(where, torch.device) else where.device
    found = _by_device.get(device.type)
    if found is None:
        raise UsageError(f"sparse weights have no kernels on {device.type}: use cpu or cuda")
    return found


def backend_of_packing(packed: Format) -> Backend:
    """The backend whose kernels read a packing; the meta backend for plain formats."""
    return _by_packing.get(type(packed), META)


@contextmanager
def use_backend(backend: Backend, device_type: str = "cpu") -> Iterator[None]:
    """Serve a kind of device by another backend until the end, as tests do that have no GPU."""
    before = _by_device[device_type]
    _by_device[device_type] = backend
    try:
        yield
    finally:
        _by_device[device_type] = before


__all__ = [
    "BACKENDS",
    "CPU",
    "CUDA",
    "META",
    "WEIGHT_CLASSES",
    "Backend",
    "backend_of",
    "backend_of_packing",
    "use_backend",
]
