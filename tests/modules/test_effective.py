"""Weights that are computed before each call: packed, pruned and loaded as what they are then."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_bert import build, output
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import sparse_engine as se
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.io import load_pretrained
from sparse_engine.modules.effective import fold_

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


class Scaled(nn.Module):
    """A parametrization of no known class."""

    def forward(self, weight: Tensor) -> Tensor:
        return 3 * weight


def masked(module: nn.Module, name: str) -> None:
    prune.l1_unstructured(module, name, 0.5)


def masked_twice(module: nn.Module, name: str) -> None:
    prune.l1_unstructured(module, name, 0.5)
    prune.random_unstructured(module, name, 0.4)


def both(module: nn.Module, name: str) -> None:
    parametrizations.weight_norm(module, name)
    parametrizations.spectral_norm(module, name)


def own(module: nn.Module, name: str) -> None:
    nn.utils.parametrize.register_parametrization(module, name, Scaled())


WAYS: dict[str, tuple[Callable[[nn.Module, str], Any], str]] = {
    "mask": (masked, "mask of torch.nn.utils.prune folded in"),
    "two masks": (masked_twice, "mask of torch.nn.utils.prune folded in"),
    "weight norm": (parametrizations.weight_norm, "weight norm folded in"),
    "spectral norm": (parametrizations.spectral_norm, "spectral norm folded in"),
    "old weight norm": (weight_norm, "weight norm folded in"),
    "old spectral norm": (spectral_norm, "spectral norm folded in"),
    "both norms": (both, "weight norm and spectral norm folded in"),
    "a parametrization": (own, "Scaled folded in"),
}
KINDS = {
    nn.Linear: "weight",
    nn.LSTM: "weight_hh_l0",
    nn.GRU: "weight_ih_l0",
    nn.GRUCell: "weight_hh",
}


class Net(nn.Module):
    def __init__(self, kind: type[nn.Module], way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = kind(8, 12), nn.Linear(12, 4)
        with torch.no_grad():
            for name, parameter in self.inner.named_parameters():
                if "weight" in name:
                    parameter.mul_(torch.rand_like(parameter) < 0.3)
                    parameter[:, 0] = 0.5  # rows without any weight have no norm
        WAYS[way][0](self.inner, KINDS[kind])

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.out(y[0] if isinstance(y, tuple) else y)


def stale(kind: type[nn.Module], way: str) -> tuple[Net, Tensor, Tensor]:
    """A model whose originals were loaded after the last call, an input, and its output."""
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    model, same = Net(kind, way).eval(), Net(kind, way).eval()
    state = model.state_dict()
    fixed = ("_mask", "_u", "_v", "weight_u", "weight_v")
    changed = {k: v if k.endswith(fixed) and "norm" not in k else v * 1.5 for k, v in state.items()}
    for one in (model, same):
        one.load_state_dict(changed)
    with torch.no_grad():
        same(x)
        return model, x, same(x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_sparsify_packs_what_the_module_would_use(kind: type[nn.Module], way: str) -> None:
    model, x, expected = stale(kind, way)
    before = Net(kind, way).eval()(x)
    assert not torch.allclose(before, expected, atol=1e-3)  # what was loaded counts
    report = se.sparsify_(model, "csr")
    reasons = [row.reason for row in report.rows if row.name.startswith("inner")]
    assert all(reason == f"requested; {WAYS[way][1]}" for reason in reasons), reasons
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert torch.allclose(se.densify_(model)(x), expected, atol=1e-5)
    assert type(model.inner) is kind


def test_zeros_of_masks_are_seen() -> None:
    model = nn.Sequential(nn.Linear(40, 40), nn.LSTM(40, 40)).eval()
    prune.random_unstructured(model[0], "weight", 0.8)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        prune.random_unstructured(model[1], name, 0.8)
    model.load_state_dict(model.state_dict())
    report = se.sparsify_(model, "csr")
    assert [round(row.sparsity, 2) for row in report.rows] == [0.8, 0.8, 0.8]
    assert all(row.format == "csr" for row in report.rows)


def test_values_under_a_mask_are_zero_whatever_they_are() -> None:
    layer = nn.Linear(2, 1, bias=False)
    prune.custom_from_mask(layer, "weight", torch.tensor([[1.0, 0.0]]))
    layer.weight_orig.data = torch.tensor([[2.0, float("nan")]])
    fold_(layer)
    assert layer.weight.tolist() == [[2.0, 0.0]]


def test_masks_without_their_hook_are_folded() -> None:
    layer = nn.Linear(8, 8)
    masked(layer, "weight")
    expected = layer.weight_orig.detach() * layer.weight_mask
    layer._forward_pre_hooks.clear()
    layer.weight_orig.data *= 2
    fold_(layer)
    assert torch.equal(layer.weight, 2 * expected)
    assert list(layer.state_dict()) == ["bias", "weight"]


def test_folding_keeps_gradients_on_and_off_and_other_hooks() -> None:
    for way in WAYS:
        for trained in (True, False):
            model = Net(nn.Linear, way).requires_grad_(trained)
            hook = model.inner.register_forward_pre_hook(lambda module, args: None)
            fold_(model)
            assert isinstance(model.inner.weight, nn.Parameter)
            assert model.inner.weight.requires_grad == trained
            assert list(model.inner._forward_pre_hooks) == [hook.id]


SPARSE: dict[Any, tuple[Callable[[], nn.Module], str]] = {
    se.nn.SparseLinear: (lambda: nn.Linear(8, 8), "weight"),
    se.nn.SparseConv1d: (lambda: nn.Conv1d(8, 8, 3), "weight"),
    se.nn.SparseLSTM: (lambda: nn.LSTM(8, 8), "weight_ih_l0"),
    se.nn.SparseGRUCell: (lambda: nn.GRUCell(8, 8), "weight_hh"),
    se.nn.SparseMultiheadAttention: (lambda: nn.MultiheadAttention(8, 2), "in_proj_weight"),
    se.nn.SparseTransformerEncoderLayer: (
        lambda: nn.TransformerEncoderLayer(8, 2, 8),
        "linear2.weight",
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sparse", SPARSE)
def test_sparse_modules_are_not_made_of_stale_weights(sparse: Any, way: str) -> None:
    make, weight = SPARSE[sparse]
    module = make().eval()
    path, _, name = weight.rpartition(".")
    WAYS[way][0](module.get_submodule(path), name)
    with pytest.raises(
        UsageError, match=f"{weight} is computed .* sparse_engine.modules.effective.fold_"
    ):
        sparse.from_dense(module, "csr")
    fold_(module)
    assert type(sparse.from_dense(module, "csr")) is sparse


def test_models_that_transformers_builds_with_weight_norm_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path / "source")
    model, _ = load_pretrained(tmp_path / "source")
    se.prune(model, 0.7)
    x = torch.randn(1, 400, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(x)[0]
        se.sparsify_(model, "csr")
        se.save(model, tmp_path / "package", source=tmp_path / "source")
        assert torch.allclose(se.load(tmp_path / "package")(x)[0], expected, atol=1e-5)


def test_wanted_picks_weights() -> None:
    model = nn.Sequential(Net(nn.Linear, "mask"), Net(nn.Linear, "weight norm"))
    assert fold_(model, lambda name: name == "1.inner.weight") == {
        "1.inner": "weight norm folded in"
    }
    assert hasattr(model[0].inner, "weight_mask")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [nn.Linear, nn.LSTM])
def test_prune_prunes_what_the_module_would_use(kind: type[nn.Module], way: str) -> None:
    model, x, expected = stale(kind, way)
    keep_all = se.prune(model, 0.0, filter_fn=lambda module, name: True)
    assert keep_all.layers
    assert torch.allclose(model(x), expected, atol=1e-5)
    weight = getattr(model.inner, KINDS[kind])
    zeros = weight == 0
    se.prune(model, 0.9, filter_fn=lambda module, name: True)
    weight = getattr(model.inner, KINDS[kind])
    assert bool((weight[zeros] == 0).all())
    assert float((weight == 0).float().mean()) >= 0.89


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [nn.Linear, nn.LSTM, nn.GRUCell])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_packages_load_into_the_model_as_it_was_and_as_it_is(
    kind: type[nn.Module], way: str, device: str, tmp_path: Path
) -> None:
    if device == "meta" and way == "two masks":
        way = "mask"  # torch draws no second mask without values
    model, x, expected = stale(kind, way)
    se.sparsify_(model, "csr")
    se.save(model, tmp_path / "package")
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = Net(kind, way)
    loaded = se.load(tmp_path / "package", model=given)
    assert torch.allclose(loaded(x), expected, atol=1e-5)


def test_layers_with_weight_norm_that_stay_dense_come_back(tmp_path: Path) -> None:
    model, x, expected = stale(nn.Linear, "weight norm")
    se.sparsify_(model, "csr", filter_fn=lambda module, name: name == "out")
    se.save(model, tmp_path / "package")
    loaded = se.load(tmp_path / "package", model=Net(nn.Linear, "weight norm"))
    assert torch.allclose(loaded(x), expected, atol=1e-5)


def test_masked_encoders_run_natively() -> None:
    model = build()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            prune.l1_unstructured(module, "weight", 0.8)
    expected = output(model)
    report = se.sparsify_(model, "csr")
    assert "2 bert layers run natively" in report.native
    assert torch.allclose(output(model), expected, atol=1e-5)


PREFIXES = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "parallel": lambda name: f"module.{name}",
    "parallel, compiled": lambda name: f"module._orig_mod.{name}",
    "compiled, parallel": lambda name: f"_orig_mod.module.{name}",
    "layers compiled": lambda name: name.replace("layer.0.", "layer.0._orig_mod."),
    "masked": lambda name: name,
}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_state_dicts_of_training_load(prefix: str, tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path)
    if prefix == "masked":
        for module in model.modules():
            if isinstance(module, nn.Linear):
                prune.l1_unstructured(module, "weight", 0.8)
    expected = output(model)
    state = {PREFIXES[prefix](name): tensor for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, _ = load_pretrained(tmp_path)
    assert torch.equal(output(loaded), expected)
    assert not any(name.endswith(("_orig", "_mask")) for name in loaded.state_dict())


def test_a_name_twice_and_a_mask_that_does_not_fit_are_one_line(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    path, name = tmp_path / "model.safetensors", "encoder.layer.0.output.dense.weight"
    state = load_file(path)
    save_file(state | {f"_orig_mod.{name}": state[name].clone()}, path)
    with pytest.raises(InvalidFileError, match="exists twice"):
        load_pretrained(tmp_path)
    masked_state = {k: v for k, v in state.items() if k != name}
    masked_state |= {f"{name}_orig": state[name], f"{name}_mask": torch.ones(3)}
    save_file(masked_state, path)
    with pytest.raises(InvalidFileError, match="does not fit its mask"):
        load_pretrained(tmp_path)
