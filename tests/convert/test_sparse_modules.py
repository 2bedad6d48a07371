"""Sparse modules of several layers: which are replaced, as a whole or in parts, and why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_models import EXPERTS, KINDS, experts, routed
from torch import Tensor, nn
from whole_models import Encoder, TextCnn, Translator, cut_, inputs, mixture, output, padding

import sparse_engine as se
from sparse_engine.convert import network, swap
from sparse_engine.errors import UsageError
from sparse_engine.modules.experts import UnrolledExperts
from sparse_engine.nn import (
    SparseConv1d,
    SparseExperts,
    SparseLinear,
    SparseMultiheadAttention,
    SparseTransformerDecoderLayer,
    SparseTransformerEncoderLayer,
)


def reasons(report: se.SparsifyReport) -> dict[str, str]:
    return {row.name: row.reason for row in report.rows}


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["encoder", "transformer"])
@pytest.mark.filterwarnings("ignore:the layer runs module by module")
def test_padding_masks_under_torchs_defaults(kind: str, training: bool, norm_first: bool) -> None:
    torch.manual_seed(0)
    sizes = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first}
    if kind == "encoder":
        layer = nn.TransformerEncoderLayer(32, 4, 64, **sizes)
        model: Any = nn.TransformerEncoder(layer, 2)  # nested tensors are on by default
    else:
        model = nn.Transformer(32, 4, 2, 2, 64, **sizes)
    cut_(model).train(training)
    x, hidden = torch.randn(3, 7, 32), padding()

    def run() -> Tensor:
        if kind == "encoder":
            y = model(x, src_key_padding_mask=hidden)
            return y.masked_fill(hidden[..., None], 0)
        masks = {"src_key_padding_mask": hidden, "memory_key_padding_mask": hidden}
        return model(x, x[:, :5], tgt_key_padding_mask=hidden[:, :5], **masks)

    encoder = model if kind == "encoder" else model.encoder
    nested = encoder.use_nested_tensor
    with torch.no_grad():
        dense = run()
        se.sparsify_(model, "csr")
        torch.testing.assert_close(run(), dense, rtol=1e-5, atol=1e-5)
        assert not encoder.use_nested_tensor
        se.densify_(model)
        torch.testing.assert_close(run(), dense, rtol=1e-5, atol=1e-5)
    assert encoder.use_nested_tensor == nested


@pytest.mark.parametrize("place", [0, 1])
def test_an_encoder_with_one_sparse_layer_takes_padding(place: int) -> None:
    torch.manual_seed(0)
    model = cut_(Encoder().eval())
    given = inputs("encoder")
    dense = output(model, given)
    name = f"encoder.layers.{place}"
    se.sparsify_(model, "csr", filter_fn=lambda module, path: path.startswith(name))
    kinds = [type(layer) for layer in model.encoder.layers]
    assert kinds[place] is SparseTransformerEncoderLayer
    assert kinds[1 - place] is nn.TransformerEncoderLayer
    torch.testing.assert_close(output(model, given), dense, rtol=1e-5, atol=1e-5)


def test_a_sparse_layer_put_in_by_hand_takes_padding() -> None:
    torch.manual_seed(0)
    model = cut_(Encoder().eval())
    given = inputs("encoder")
    dense = output(model, given)
    layers: Any = model.encoder.layers
    for i, layer in enumerate(layers):
        layers[i] = SparseTransformerEncoderLayer.from_dense(layer, "csr")
    torch.testing.assert_close(output(model, given), dense, rtol=1e-5, atol=1e-5)


def test_containers_are_replaced_as_a_whole() -> None:
    model = cut_(Translator().eval())
    se.sparsify_(model, "csr")
    for layer in model.transformer.encoder.layers:
        assert type(layer) is SparseTransformerEncoderLayer
        assert type(layer.self_attn) is SparseMultiheadAttention
    for layer in model.transformer.decoder.layers:
        assert type(layer) is SparseTransformerDecoderLayer
        assert type(layer.multihead_attn) is SparseMultiheadAttention
        assert isinstance(layer.linear1, SparseLinear)


def test_parts_of_a_container_stay_dense_where_they_have_no_zeros(tmp_path: Path) -> None:
    """As after pruning by a tool that skips attention: projections in the package are dense."""
    torch.manual_seed(0)
    model = Encoder().eval()
    for layer in model.encoder.layers:
        cut_(layer.linear1)
        cut_(layer.linear2)
    given = inputs("encoder")
    dense = output(model, given)
    report = se.sparsify_(model, "csr")
    layer = model.encoder.layers[0]
    assert type(layer.self_attn.q_proj) is nn.Linear
    assert isinstance(layer.linear1, SparseLinear)
    assert "0% zeros" in reasons(report)["encoder.layers.0.self_attn.out_proj"]
    got = output(model, given)
    torch.testing.assert_close(got, dense, rtol=1e-5, atol=1e-5)
    se.save(model, tmp_path / "package", report=report)
    assert torch.equal(output(se.load(tmp_path / "package", model=Encoder()), given), got)
    se.densify_(model)
    torch.testing.assert_close(output(model, given), dense, rtol=1e-5, atol=1e-5)


def test_linears_of_a_layer_may_be_swapped_alone(tmp_path: Path) -> None:
    """A filter for linears: the layer stays torch's. Packages of old versions look like this."""
    torch.manual_seed(0)
    model = cut_(Encoder().eval())
    given = inputs("encoder")
    dense = output(model, given)
    se.sparsify_(model, "csr", filter_fn=lambda module, name: "linear" in name)
    layer = model.encoder.layers[0]
    assert type(layer) is nn.TransformerEncoderLayer
    assert isinstance(layer.linear1, SparseLinear)
    assert type(layer.self_attn) is nn.MultiheadAttention
    got = output(model, given)
    torch.testing.assert_close(got, dense, rtol=1e-5, atol=1e-5)
    se.save(model, tmp_path / "package")
    assert torch.equal(output(se.load(tmp_path / "package", model=Encoder()), given), got)


class Own(nn.TransformerEncoderLayer):
    """A layer whose owner computes something else."""

    def forward(self, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * super().forward(src, *args, **kwargs)


def hook_a_norm(model: Any) -> None:
    model[0].norm2.register_forward_hook(lambda module, args, output: 2 * output)


def exchange_a_forward(model: Any) -> None:
    dropout = model[0].dropout
    dropout.forward = lambda x: 2 * x


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hook_a_norm, "norm2 has forward hooks"),
        (exchange_a_forward, "dropout has a forward of its own"),
    ],
)
def test_a_changed_container_is_named_and_its_parts_are_replaced(
    change: Callable[[Any], None], reason: str
) -> None:
    torch.manual_seed(0)
    model = cut_(nn.Sequential(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)).eval())
    change(model)
    x = torch.randn(2, 5, 32)
    dense = model(x).detach()  # with gradients: torch's fast path would not call the parts
    report = se.sparsify_(model, "csr")
    torch.testing.assert_close(model(x), dense, rtol=1e-5, atol=1e-5)
    assert type(model[0]) is nn.TransformerEncoderLayer
    assert isinstance(model[0].linear1, SparseLinear)
    left = {module.name: module.reason for module in report.left}
    assert left["0"] == f"its parts are replaced one by one: {reason}"
    assert "its parts are replaced one by one" in str(report)


def test_a_subclass_stays_and_its_linears_are_swapped() -> None:
    model = cut_(nn.Sequential(Own(32, 4, 64, batch_first=True)).eval())
    x = torch.randn(2, 5, 32)
    with torch.inference_mode():
        dense = model(x)
        report = se.sparsify_(model, "csr")
        torch.testing.assert_close(model(x), dense, rtol=1e-5, atol=1e-5)
    assert type(model[0]) is Own
    assert {"0.linear1", "0.linear2", "0.self_attn.q_proj"} <= {r.name for r in report.swapped}
    assert "is a Own" in next(left.reason for left in report.left if left.name == "0")


def test_what_stays_says_why() -> None:
    class MyConv(nn.Conv1d):
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 8)
            self.image = nn.Conv2d(3, 4, 3)
            self.depthwise = nn.Conv1d(16, 16, 3, groups=16)
            self.full = nn.Conv1d(16, 16, 3)
            self.mine = MyConv(16, 16, 3)
            self.half = nn.Conv1d(16, 16, 3).half()
            self.hooked = nn.MultiheadAttention(8, 2)
            self.extra = nn.MultiheadAttention(8, 2, add_bias_kv=True)
            self.skipped = nn.Conv1d(16, 16, 3)

    model = Model().eval()
    for name, child in model.named_children():
        if name not in ("full", "half"):
            cut_(child)
    model.hooked.register_forward_hook(lambda *_: None)
    report = se.sparsify_(model, "csr", filter_fn=lambda module, name: name != "skipped")
    why = reasons(report)
    assert not report.swapped
    assert why["depthwise"] == "16 groups of 1 channels, no gain below 8"
    assert "0% zeros" in why["full"]
    assert "is a MyConv" in why["mine"]
    assert "float16" in why["half"]
    assert "hooks" in why["hooked"]
    assert "add_bias_kv" in why["extra"]
    assert why["skipped"] == "left out by filter_fn"
    left = {module.name: module.reason for module in report.left}
    assert left.keys() == {"embed", "image"}
    assert "Conv2d" in left["image"]
    text = str(report).splitlines()
    assert "image there is no sparse layer for Conv2d" in text
    assert max(map(len, text)) <= 80
    assert report.skipped == 0
    assert "0 of 7 layers sparse" in report.summary


@pytest.mark.parametrize("wins", [False, True])
def test_auto_replaces_a_module_only_if_that_is_faster(
    wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def faster(kind: Any, dense: nn.Module, sparse: nn.Module, tokens: tuple[int, ...]) -> Any:
        seen.append(kind.name)
        return wins, f"{tokens} tokens timed"

    monkeypatch.setattr(swap, "faster", faster)
    monkeypatch.setattr(swap, "choose_format", lambda *_: swap.Choice("csr", 0.5, {}, "faster"))
    monkeypatch.setattr(network, "_sparse_network", lambda *_: (None, "slower"))
    model = nn.ModuleDict({"text": cut_(TextCnn()), "words": cut_(Translator())}).eval()
    report = se.sparsify_(model, se.SparseConfig("auto", tokens=(3,)))
    assert set(seen) == {"conv", "encoder layer", "decoder layer"}
    rows = [row for row in report.rows if row.kind != "linear"]
    assert all((row.format == "csr") == wins for row in rows)
    convs = [row for row in rows if row.kind == "conv"]
    assert all(("timed" in row.reason) != wins for row in convs)
    replaced = sum(
        isinstance(m, SparseConv1d | SparseTransformerEncoderLayer) for m in model.modules()
    )
    assert replaced == (5 if wins else 0)
    assert all(row.bytes == row.dense_bytes for row in rows) != wins


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "no_gate"])
def test_timing_runs_every_kind(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what it measures, but that it calls both with what they take."""
    monkeypatch.setattr(swap, "choose_format", lambda *_: swap.Choice("csr", 0.5, {}, "faster"))
    model = cut_(
        nn.ModuleDict(
            {
                "conv": nn.Conv1d(16, 16, 3, stride=2, dilation=2),
                "attention": nn.MultiheadAttention(16, 2, kdim=8, vdim=12),
                "encoder": nn.TransformerEncoderLayer(16, 2, 32),
                "decoder": nn.TransformerDecoderLayer(16, 2, 32, batch_first=True),
                "experts": experts(kind),
            }
        )
    ).train()
    report = se.sparsify_(model, se.SparseConfig("auto", tokens=(1, 4)))
    assert {row.kind for row in report.rows} == {
        *("conv", "attention", "encoder layer", "decoder layer", "experts")
    }
    assert model.training
    assert all(module.training for module in model.modules() if len(list(module.children())))


def test_shared_modules_stay_shared(tmp_path: Path) -> None:
    conv, attention = cut_(nn.Conv1d(16, 16, 3)), cut_(nn.MultiheadAttention(16, 2))

    def build() -> nn.Module:
        return nn.ModuleDict({"a": conv, "b": conv, "c": attention, "d": attention}).eval()

    model = build()
    report = se.sparsify_(model, "csr")
    assert model["a"] is model["b"]
    assert model["c"] is model["d"]
    assert "d.q_proj" in reasons(report)
    se.save(model, tmp_path / "package", report=report)
    loaded = se.load(tmp_path / "package", model=build())
    x = torch.randn(1, 16, 9)
    assert torch.equal(loaded["b"](x), model["a"](x))
    se.densify_(model)
    assert model["a"] is model["b"]
    assert torch.equal(model["a"].weight, conv.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_experts_compute_what_dense_ones_do(kind: str) -> None:
    torch.manual_seed(0)
    module = cut_(experts(kind))
    state = {key: value.clone() for key, value in module.state_dict().items()}
    sparse = SparseExperts.from_dense(module, "csr")
    x, index, weights = routed()
    with torch.inference_mode():
        expected = module(x, index, weights)
        torch.testing.assert_close(sparse(x, index, weights), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(sparse(x[:0], index[:0], weights[:0]), x[:0])
    assert sparse.num_experts == EXPERTS
    assert sum(isinstance(m, SparseLinear) for m in sparse.modules()) == 2 * EXPERTS
    assert all(p.dim() < 3 for p in sparse.parameters())
    dense = sparse.to_dense()
    assert type(dense) is type(module)
    assert all(torch.equal(value, state[key]) for key, value in dense.state_dict().items())
    with torch.inference_mode():
        torch.testing.assert_close(dense(x, index, weights), expected)


def test_experts_that_compute_something_else_stay() -> None:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    class Loud(MixtralExperts):
        def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:  # type: ignore
            return 2 * UnrolledExperts(self)(x, index, weights)

    loud = Loud(MixtralConfig(hidden_size=16, intermediate_size=8, num_local_experts=3))
    for parameter in loud.parameters():
        nn.init.normal_(parameter)
    model = nn.ModuleDict({"experts": cut_(loud)})
    report = se.sparsify_(model, "csr")
    assert model["experts"] is loud
    assert "is a Loud" in reasons(report)["experts"]
    with pytest.raises(UsageError, match="computes something else"):
        SparseExperts.from_dense(loud, "csr")


@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe"])
def test_a_mixture_from_a_folder_to_a_package(kind: str, tmp_path: Path) -> None:

    torch.manual_seed(0)
    model = cut_(mixture(kind).eval())
    model.save_pretrained(tmp_path / "folder")
    loaded = se.io.load_pretrained(tmp_path / "folder")[0]
    report = se.sparsify_(loaded, "csr")
    assert {row.kind for row in report.rows} == {"linear", "experts"}
    se.save(loaded, tmp_path / "package", report=report, source=tmp_path / "folder")
    given = inputs("mixtral")
    again = se.load(tmp_path / "package")
    assert torch.equal(output(again, given), output(loaded, given))
    torch.testing.assert_close(output(again, given), output(model, given), rtol=1e-5, atol=1e-5)


def test_a_single_sparse_module_is_converted_by_itself() -> None:
    with pytest.raises(UsageError, match="single SparseConv1d: use its to_dense"):
        se.densify_(SparseConv1d(4, 4, 3))
    with pytest.raises(UsageError, match=r"single Experts: use SparseExperts\.from_dense"):
        se.sparsify_(experts("mixtral"))
    with pytest.raises(UsageError, match=r"single Conv1d: use SparseConv1d\.from_dense"):
        se.sparsify_(nn.Conv1d(4, 4, 3))


def test_convolutions_are_read_as_torchs_are() -> None:
    """Whisper's encoder multiplies the strides of its convolutions."""
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_source_positions": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 16}
    inner = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 60, "pad_token_id": 0}
    config = transformers.WhisperConfig(**sizes, **heads, **inner, max_target_positions=9)
    torch.manual_seed(0)
    model = cut_(transformers.WhisperModel(config).eval())
    given = {"input_features": torch.randn(2, 16, 16), "decoder_input_ids": torch.ones(2, 3).long()}
    with torch.inference_mode():
        dense = model(**given).last_hidden_state
        report = se.sparsify_(model, "csr")
        assert type(model.encoder.conv2) is SparseConv1d
        got = model(**given).last_hidden_state
    torch.testing.assert_close(got, dense, rtol=1e-5, atol=1e-5)
    conv = nn.Conv1d(16, 24, 3, stride=2, padding=1, groups=2)
    sparse = SparseConv1d.from_dense(conv, "csr")
    for name in ("stride", "kernel_size", "padding", "dilation", "groups"):
        assert getattr(sparse, name) == getattr(conv, name)
    assert sparse.weight.shape == conv.weight.shape
    assert torch.equal(sparse.bias, conv.bias)
    assert "conv" in {row.kind for row in report.rows}
