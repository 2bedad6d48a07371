"""Models of transformers on a GPU or on the interpreter; test_triton.py runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from triton_common import DEVICE, outputs
from triton_engine import on_gpu

import sparse_engine as se
from sparse_engine import kernels
from sparse_engine.errors import UsageError
from sparse_engine.nn import SparseLinear
from sparse_engine.nn.native.fused import FusedProjections, SparseGatedMLP

__all__ = ["on_gpu", "outputs"]

transformers = pytest.importorskip("transformers")


def prune(model: nn.Module) -> Any:
    """Half the 16x16 blocks of every linear layer zero."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            rows, cols = module.weight.shape
            kept = torch.rand(-(-rows // 16), -(-cols // 16), generator=generator) < 0.5
            mask = kept.repeat_interleave(16, 0).repeat_interleave(16, 1)[:rows, :cols]
            module.weight.data *= mask
    return model.eval()


def llama(**more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=60,
        max_position_embeddings=64,
        initializer_range=0.2,
        **more,
    )
    return prune(transformers.LlamaForCausalLM(config))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are called, as they are called."""
    called: list[str] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        called.append("gated" if kwargs.get("gated") else "plain")
        return original(*args, **kwargs)

    original = kernels.linear_bsr
    monkeypatch.setattr(kernels, "linear_bsr", watched)
    return called


@torch.inference_mode()
def test_llama(launches: list[str]) -> None:
    """Logits and greedy tokens are those of the dense model; four launches a layer, not seven."""
    model, dense = llama().to(DEVICE), llama().to(DEVICE)
    ids = torch.randint(60, (2, 5), device=DEVICE)
    report = se.sparsify_(model, "bsr:16x16", filter_fn=lambda m, name: "lm_head" not in name)
    assert len(report.swapped) == 14
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-3, atol=1e-4)
    assert launches == ["plain", "plain", "gated", "plain"] * 2
    told = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **told), dense.generate(ids, **told))


@torch.inference_mode()
def test_joined_weights_are_held_once_and_made_anew() -> None:
    model = llama().to(DEVICE)
    ids = torch.randint(60, (1, 3), device=DEVICE)
    se.sparsify_(model, "bsr:16x16")
    model(ids)
    layer = model.model.layers[0]
    q, k, gate, up = (
        layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.gate_proj, layer.mlp.up_proj
    )  # fmt: skip
    for first, second in ((q, k), (gate, up)):
        assert (
            first.values.untyped_storage().data_ptr() == second.values.untyped_storage().data_ptr()
        )
        first.packed.validate()
        second.packed.validate()
    before = model(ids).logits
    changed = SparseLinear.from_dense(nn.Linear(64, 32, bias=False), "bsr:16x16").to(DEVICE)
    k.load_state_dict(changed.state_dict())
    after = model(ids).logits
    assert not torch.allclose(before, after)
    se.densify_(model)
    assert not any(isinstance(m, SparseGatedMLP | SparseLinear) for m in model.modules())
    torch.testing.assert_close(model(ids).logits, after, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_layers_that_cannot_be_joined_run_alone(launches: list[str]) -> None:
    """Other formats, and x that are not the same."""
    model, dense = llama().to(DEVICE), llama().to(DEVICE)
    ids = torch.randint(60, (1, 3), device=DEVICE)
    se.sparsify_(model, "csr")
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-3, atol=1e-4)
    assert not launches
    se.densify_(model)
    se.sparsify_(model, "bsr:16x16")
    attention = model.model.layers[0].self_attn
    x, other = torch.randn(2, 64, device=DEVICE), torch.randn(2, 64, device=DEVICE)
    wanted = [dense.model.layers[0].self_attn.k_proj(t) for t in (other, x)]
    attention.q_proj(x)
    torch.testing.assert_close(attention.k_proj(other), wanted[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(attention.k_proj(x), wanted[1], rtol=1e-3, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_llama_in_other_dtypes(dtype: str) -> None:
    model, dense = llama().to(DEVICE), llama().to(DEVICE)
    ids = torch.randint(60, (1, 4), device=DEVICE)
    se.sparsify_(model, se.SparseConfig("bsr:16x16", dtype=dtype))
    found, expected = model(ids).logits, dense(ids).logits
    assert float((found - expected).norm() / expected.norm()) < 0.1


@torch.inference_mode()
def test_encoder() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=60,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    dense = prune(transformers.BertModel(config)).to(DEVICE)
    model = transformers.BertModel(config).to(DEVICE).eval()
    model.load_state_dict(dense.state_dict())
    ids = torch.randint(60, (2, 7), device=DEVICE)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3], device=DEVICE)
    se.sparsify_(model, "bsr:16x16")
    found = model(ids, attention_mask=mask).last_hidden_state
    expected = dense(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask != 0], expected[mask != 0], rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_a_model_compiles_as_one_graph() -> None:
    model = llama().to(DEVICE)
    ids = torch.randint(60, (1, 4), device=DEVICE)
    se.sparsify_(model, "bsr:16x16")
    expected = model(ids, use_cache=False).logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected)


@torch.inference_mode()
def test_joined_layers_see_what_is_written_to_them() -> None:
    """Biases too; and a piece without any block is no obstacle."""
    layers = [nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)]
    layers[0].weight.data.zero_()
    sparse = [SparseLinear.from_dense(linear, "bsr:16x16").to(DEVICE) for linear in layers]
    FusedProjections(sparse)
    x = torch.randn(3, 32, device=DEVICE)

    def check() -> None:
        for linear, layer in zip(layers, sparse, strict=True):
            torch.testing.assert_close(layer(x).cpu(), linear(x.cpu()), rtol=1e-4, atol=1e-5)

    check()
    layers[1].bias.data = layers[1].bias + 1
    sparse[1].bias = layers[1].bias.data.clone().to(DEVICE)
    check()
    layers[2].weight.data = -layers[2].weight
    sparse[2].load_state_dict(
        SparseLinear.from_dense(layers[2], "bsr:16x16").to(DEVICE).state_dict()
    )
    check()


def test_gated_modules_refuse_what_their_layers_refuse() -> None:
    model = llama().to(DEVICE)
    se.sparsify_(model, "bsr:16x16")
    mlp = model.model.layers[0].mlp
    with pytest.raises(UsageError, match="inference only"):
        mlp(torch.randn(1, 64, device=DEVICE, requires_grad=True))
    with torch.inference_mode(), pytest.raises(UsageError, match="the weight takes"):
        mlp(torch.randn(1, 63, device=DEVICE))


@torch.inference_mode()
def test_t5_keeps_its_last_layer_in_float32() -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=60,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    model = prune(transformers.T5EncoderModel(config)).to(DEVICE).bfloat16()
    mlp = model.encoder.block[0].layer[1].DenseReluDense
    mlp.wo.float()
    x = torch.randn(3, 32, device=DEVICE).bfloat16()
    expected = mlp(x)
    config = se.SparseConfig("bsr:16x16", dtype="bfloat16")
    se.sparsify_(model, config, filter_fn=lambda m, name: ".wi_" in name)
    joined = model.encoder.block[0].layer[1].DenseReluDense
    assert isinstance(joined, SparseGatedMLP)
    found = joined(x)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@torch.inference_mode()
def test_gated_modules_call_what_has_hooks_or_is_another_by_now() -> None:
    model = llama().to(DEVICE)
    dense = llama().to(DEVICE).model.layers[0].mlp
    se.sparsify_(model, "bsr:16x16")
    mlp = model.model.layers[0].mlp
    assert isinstance(mlp, SparseGatedMLP)
    x = torch.randn(3, 64, device=DEVICE)
    torch.testing.assert_close(mlp(x), dense(x), rtol=1e-3, atol=1e-4)
    doubled = [m.gate_proj.register_forward_hook(lambda m, a, y: 2 * y) for m in (mlp, dense)]
    torch.testing.assert_close(mlp(x), dense(x), rtol=1e-3, atol=1e-4)
    for hook in doubled:
        hook.remove()
    mlp.act_fn = dense.act_fn = nn.ReLU()
    torch.testing.assert_close(mlp(x), dense(x), rtol=1e-3, atol=1e-4)
