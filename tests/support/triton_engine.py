"""What the cases of the engine on a GPU share: layers as they are there, and weights for a format.

On the interpreter layers pack for the GPU while everything stays on the CPU.
"""

from __future__ import annotations

import pytest
import torch
from sparse_engine.kernels.launch import INTERPRETED
from torch import Tensor

from sparse_engine.formats import FormatSpec
from sparse_engine.nn import NativeStack
from sparse_engine.nn import linear as linear_module
from sparse_engine.nn.recurrent.base import SparseRNNBase
from sparse_engine.packings import GPU_PACKINGS, pack_gpu


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU, let layers and networks do what they do on one."""
    as_if_on_gpu(monkeypatch)


def as_if_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made or moved from here on is packed for the GPU."""
    if INTERPRETED:
        monkeypatch.setattr(
            linear_module, "pack", lambda w, device="", dtype=None, tokens=(): pack_gpu(w, dtype)
        )
        monkeypatch.setattr(linear_module, "PACKINGS", GPU_PACKINGS)
        monkeypatch.setattr(SparseRNNBase, "_on_gpu", lambda self, x: True)
        monkeypatch.setattr(NativeStack, "on_gpu", lambda self, x: True)


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
