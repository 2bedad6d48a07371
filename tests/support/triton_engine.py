"""What the cases of the engine on a GPU share: a backend for the interpreter, weights for a format.

Triton's interpreter runs the kernels on tensors of the CPU, which the CUDA backend then serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import pytest
import torch
from sparse_engine.kernels.launch import INTERPRETED
from torch import Tensor

from sparse_engine.backends import CPU, use_backend
from sparse_engine.backends.cuda import CUDABackend
from sparse_engine.formats import FormatSpec


class InterpreterBackend(CUDABackend):
    """The CUDA backend on Triton's interpreter, which has no CUDA graphs and no clock of a GPU."""

    def time(
        self,
        calls: Mapping[str, Callable[[], object]],
        device: torch.device,
        inputs: Sequence[Tensor] = (),
        repeats: int = 1,
        between: int | None = None,
    ) -> dict[str, float]:
        """As on the CPU."""
        return CPU.time(calls, device, inputs, repeats, between)

    def device_name(self, device: torch.device) -> str:
        """The interpreter's name."""
        return "Triton interpreter"


@pytest.fixture(autouse=True)
def on_gpu() -> Iterator[None]:
    """Where there is no GPU, layers and networks run as they do on one."""
    with as_if_on_gpu():
        yield


@contextmanager
def as_if_on_gpu() -> Iterator[None]:
    """What is made or moved until the end is packed for the GPU."""
    with use_backend(InterpreterBackend()) if INTERPRETED else nullcontext():
        yield


def weight_for(spec: str, out_features: int, in_features: int) -> Tensor:
    """A random weight that a format can hold."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(out_features, in_features, generator=generator)
    params = FormatSpec.parse(spec).params
    if "of" in params:
        scores = torch.rand(out_features, in_features // params["of"], params["of"])
        kept = scores >= scores.topk(params["keep"], -1).values[..., -1:]
        return weight * kept.view(weight.shape)
    rows, cols = params.get("rows", 1), params.get("cols", 1)
    grid = (-(-out_features // rows), -(-in_features // cols))
    kept = torch.rand(grid, generator=generator) < 0.4
    kept = kept.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    return weight * kept[:out_features, :in_features]
