"""Heads and units of torch.nn's attention and Transformer: cut models against torch itself.

The reference is a module of torch in which the weights of the removed heads are zeros.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.modules.cut_attention import CutMultiheadAttention

TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def zero_removed(dense: nn.Module, report: se.PruneReport) -> None:
    """Zero the columns that read what was removed."""
    for site in report.sites:
        removed = [i for i in range(site.groups) if i not in site.kept]
        assert removed
        if site.kind == "head":
            attention: Any = dense.get_submodule(site.name)
            weight = attention.out_proj.weight.data.unflatten(1, (attention.num_heads, -1))
        else:
            weight = dense.get_submodule(site.name.replace("linear1", "linear2")).weight.data
        weight[:, removed] = 0


class Holder(nn.Module):
    """An attention inside of a module."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 6, **options)

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.attention(*args, **options)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "without bias": {"bias": False},
    "other keys": {"kdim": 10, "vdim": 14},
    "more keys": {"add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_attention_with_fewer_heads(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Holder(dropout=0.3, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    dense = copy.deepcopy(model)
    report = se.prune(model, 0.3, "head")
    assert model.attention.num_heads == 4
    zero_removed(dense, report)
    shape = (3, 7) if options.get("batch_first") else (7, 3)
    query = torch.randn(*shape, 24)
    key = torch.randn(*shape, options.get("kdim", 24))
    value = torch.randn(*shape, options.get("vdim", 24))
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 4:] = True
    causal = torch.ones(7, 7, dtype=torch.bool).triu(1)
    for given in (
        {"need_weights": False},
        {"key_padding_mask": padding, "need_weights": False},
        {"attn_mask": causal, "need_weights": False, "is_causal": True},
        {"attn_mask": causal.float() * -1e4, "key_padding_mask": padding, "need_weights": False},
    ):
        found, expected = model(query, key, value, **given), dense(query, key, value, **given)
        torch.testing.assert_close(found[0], expected[0], **TIGHT)
        assert found[1] is None
    found, expected = (m(query, key, value, average_attn_weights=False) for m in (model, dense))
    kept = list(report.sites[0].kept)
    torch.testing.assert_close(found[0], expected[0], **TIGHT)
    torch.testing.assert_close(found[1], expected[1][:, kept], **TIGHT)
    single = model(query[0], key[0], value[0]), dense(query[0], key[0], value[0])
    torch.testing.assert_close(single[0][0], single[1][0], **TIGHT)


def inputs(batch_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target, and padding of the source."""
    source, target = torch.randn(3, 9, 24), torch.randn(3, 6, 24)
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[1, 5:] = padding[2, 8:] = True
    if not batch_first:
        source, target = source.transpose(0, 1), target.transpose(0, 1)
    return source, target, padding


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_transformer(norm_first: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    model = nn.Transformer(24, 6, 2, 2, 40, batch_first=batch_first, norm_first=norm_first).eval()
    dense = copy.deepcopy(model)
    report = se.prune(model, 0.3, ["head", "unit"])
    sizes = {(site.kind, len(site.kept)) for site in report.sites}
    assert (sizes, len(report.sites)) == ({("head", 4), ("unit", 28)}, 10)
    assert model.decoder.layers[1].multihead_attn.q_proj.weight.shape == (16, 24)
    assert model.decoder.layers[1].linear2.weight.shape == (24, 28)
    zero_removed(dense, report)
    source, target, padding = inputs(batch_first)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    for given in (
        {},
        {"src_key_padding_mask": padding, "memory_key_padding_mask": padding},
        {"tgt_mask": mask, "tgt_is_causal": True, "src_mask": torch.ones(9, 9).triu(2) > 0},
    ):
        with torch.inference_mode():
            found, expected = model(source, target, **given), dense(source, target, **given)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_the_fused_path_does_not_read_past_a_cut_attention(nested: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 6, 40, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()
    dense = copy.deepcopy(model)
    zero_removed(dense, se.prune(model, 0.3, [se.Head(round_to=4), "unit"]))
    source, _, padding = inputs(batch_first=True)
    with torch.inference_mode():
        found = model(source, src_key_padding_mask=padding)
        expected = dense(source, src_key_padding_mask=padding)
    exists = ~padding
    torch.testing.assert_close(found[exists], expected[exists], rtol=1e-5, atol=2e-6)


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 6, 64, 0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_a_cut_encoder_trains_copies_loads_and_is_cut_again() -> None:
    model = encoder()
    x = torch.randn(4, 5, 24)
    calibration = [torch.randn(8, 5, 24) for _ in range(6)]
    se.prune(model, 0.3, ["head", "unit"], "obs", recovery="least_squares", calibration=calibration)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    copied.load_state_dict(model.state_dict())
    torch.testing.assert_close(copied(x), model(x))
    optimizer = torch.optim.SGD(copied.train().parameters(), 0.01)
    copied(x).square().sum().backward()
    assert all(p.grad is not None for p in copied.parameters())
    optimizer.step()
    dense = copy.deepcopy(model)
    report = se.prune(model, 0.5, "head")
    assert [site.groups for site in report.sites] == [4, 4]
    zero_removed(dense, report)
    torch.testing.assert_close(model(x), dense(x), **TIGHT)
    assert isinstance(model.layers[0].self_attn, CutMultiheadAttention)


@torch.inference_mode()
def test_a_cut_encoder_is_pruned_and_runs_natively() -> None:
    model = encoder()
    x = torch.randn(4, 5, 24)
    se.prune(model, 0.5, ["head", "unit"])
    report = se.prune(model, 0.6)
    assert "layers.0.self_attn.q_proj" in [layer.name for layer in report.layers]
    expected = model(x)
    se.sparsify_(model, "csr")
    layer = model.layers[0]
    assert isinstance(layer.self_attn, se.nn.SparseMultiheadAttention)
    assert layer.problem(x, None) is None
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    se.densify_(model)
    assert isinstance(model.layers[0].self_attn, CutMultiheadAttention)
    torch.testing.assert_close(model(x), expected, **TIGHT)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_cut_encoder_is_saved_and_loaded(sparse: bool, tmp_path: Path) -> None:
    model = encoder()
    se.prune(model, 0.3, [se.Head(), "unit"])
    if sparse:
        se.prune(model, 0.7)
        se.save(model, tmp_path / "cut", report=se.sparsify_(model, "csr"))
    else:
        se.save(model, tmp_path / "cut")
    loaded = se.load(tmp_path / "cut", model=encoder()).eval()
    expected = se.nn.SparseMultiheadAttention if sparse else CutMultiheadAttention
    assert type(loaded.layers[0].self_attn) is expected
    x = torch.randn(4, 5, 24)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


def test_heads_that_all_stay_leave_the_module_as_it_is() -> None:
    model = Holder()
    before = model.attention.in_proj_weight
    se.prune(model, 0.3, se.Head(keep=6))
    assert type(model.attention) is nn.MultiheadAttention
    assert model.attention.in_proj_weight is before


def test_refusals() -> None:
    class Own(nn.MultiheadAttention):
        pass

    model = Holder()
    model.attention = Own(24, 6)
    with pytest.raises(UsageError, match="attention stays, attention is a Own"):
        se.prune(model, 0.3, "head")
    model = Holder()
    model.attention.out_proj = nn.Sequential()
    with pytest.raises(UsageError, match=r"attention\.out_proj is a Sequential"):
        se.prune(model, 0.3, "head")
    shared = nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 6, 40), 2)
    shared.layers[1] = shared.layers[0]
    with pytest.raises(UsageError, match="share a weight"):
        se.prune(shared, 0.3, "head")
    with pytest.raises(UsageError, match="at least 1"):
        CutMultiheadAttention(24, 0, 4)
