"""The cost model of format="auto": which formats are worth timing."""

from __future__ import annotations

import pytest
import torch

import sparse_engine as se
from sparse_engine.auto.cost import candidates
from sparse_engine.backends import CPU
from sparse_engine.backends.cpu_table import has_tiles


def test_the_pattern_and_the_token_count_decide_on_tall_blocks() -> None:
    """Fill does not: blocks with a third of their elements in use may be fastest for one token."""
    torch.manual_seed(0)
    weight = torch.randn(512, 512) * (torch.rand(512, 512) < 0.33)
    weight *= (torch.rand(32, 512) < 0.2).repeat_interleave(16, 0)
    assert 0.25 < se.formats.block_fill(weight, 16, 1) < 0.4
    assert "bsr:16x1" in candidates(weight, (1,), "float32")
    assert "bsr:16x1" not in candidates(weight, (128,), "float32")
    scattered = torch.randn(512, 512) * (torch.rand(512, 512) < 0.05)
    assert not [spec for spec in candidates(scattered, (1,), "float32") if spec.startswith("bsr")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_formats_that_cannot_win_are_dropped(dtype: str) -> None:
    weight = torch.randn(512, 512) * (torch.rand(512, 512) > 0.9)
    many = candidates(weight, (128,), dtype)
    if has_tiles() and dtype != "float32":
        assert "bitmask" in many
    else:
        assert "csr" in many
        assert "bitmask" not in many
    assert set(candidates(weight, (1,), dtype)) & {"sellp", "bitmask"}
    assert set(many) <= set(CPU.formats(weight, dtype))
