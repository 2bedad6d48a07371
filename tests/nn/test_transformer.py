"""SparseTransformerEncoderLayer: what runs as one native call, and what runs module by module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from takeover_models import Doubled, louder_output, patch, thinned
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from sparse_engine.nn import SparseTransformerEncoderLayer


class Louder(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class LouderLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 9 * super().forward(input)


def encoder_layer() -> Any:
    torch.manual_seed(0)
    dense = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    return SparseTransformerEncoderLayer.from_dense(thinned(dense), "csr").eval()


def run(layer: Any) -> Tensor:
    with torch.inference_mode():
        return layer(torch.arange(160.0).view(2, 5, 16) / 80 - 1)


def module_by_module(layer: Any) -> Tensor:
    with torch.inference_mode():
        return nn.TransformerEncoderLayer.forward(
            layer, torch.arange(160.0).view(2, 5, 16) / 80 - 1
        )


def project(layer: Any) -> None:
    layer.self_attn.q_proj = LouderLinear(16, 16)


UNKNOWN: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "another norm": ("norm1 is a RMSNorm", lambda m: setattr(m, "norm1", nn.RMSNorm(16))),
    "another dropout": ("dropout is a Tanh", lambda m: setattr(m, "dropout", nn.Tanh())),
    "a sequence": (
        "linear2 is a Sequential",
        lambda m: setattr(m, "linear2", nn.Sequential(m.linear2, nn.Tanh())),
    ),
    "a projection of another class": ("self_attn.q_proj is a LouderLinear", project),
    "a subclass": ("norm2 is a Louder", lambda m: setattr(m, "norm2", Louder(16))),
    "a hook": (
        "norm2 has forward hooks",
        lambda m: m.norm2.register_forward_hook(louder_output),
    ),
    "a forward of its own": ("linear1 has a forward of its own", lambda m: patch(m.linear1)),
    "a parametrization": (
        "norm1",
        lambda m: parametrize.register_parametrization(m.norm1, "weight", Doubled()),
    ),
    "an unknown activation": ("activation", lambda m: setattr(m, "activation", torch.tanh)),
}


@pytest.mark.parametrize("change", UNKNOWN)
def test_what_the_native_call_does_not_know_runs_module_by_module(change: str) -> None:
    reason, make = UNKNOWN[change]
    layer = encoder_layer()
    before = run(layer)
    make(layer)
    with pytest.warns(UserWarning, match=f"module by module: .*{reason}"):
        after = run(layer)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, module_by_module(layer), rtol=1e-5, atol=1e-5)


def test_monte_carlo_dropout_runs_module_by_module() -> None:
    layer = encoder_layer()
    layer.dropout2.train()
    with pytest.warns(UserWarning, match="dropout2 is in training mode"):
        first, second = run(layer), run(layer)
    assert not torch.equal(first, second)


def narrower(layer: Any) -> None:
    layer.linear1, layer.linear2 = nn.Linear(16, 8), nn.Linear(8, 16)


OPTIONS: dict[str, Callable[[Any], Any]] = {
    "activation": lambda m: setattr(m, "activation", F.gelu),
    "norm_first": lambda m: setattr(m, "norm_first", True),
    "a narrower feed-forward": narrower,
    "no dropout": lambda m: setattr(m, "dropout", nn.Identity()),
}


@pytest.mark.parametrize("change", OPTIONS)
@pytest.mark.filterwarnings("error")
def test_options_changed_after_a_call_count_in_the_next_native_one(change: str) -> None:
    layer = encoder_layer()
    run(layer)
    OPTIONS[change](layer.requires_grad_(False))
    torch.testing.assert_close(run(layer), module_by_module(layer), rtol=1e-5, atol=1e-5)
