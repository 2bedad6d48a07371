"""Attention, convolutions, cells and experts as linear layers: same values, same memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from expert_models import KINDS as EXPERT_KINDS
from expert_models import experts, routed
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.nn import SparseConv1d
from sparse_engine.pruning.criteria.base import Criterion, Inputs
from sparse_engine.pruning.unrolled import left_alone, unrolled

ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "other sizes": {"kdim": 12, "vdim": 20},
    "other values, batch first": {"vdim": 8, "batch_first": True},
    "bias of keys": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True, "batch_first": True},
    "all": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 12},
}
CONVS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride, dilation": {"stride": 2, "dilation": 3, "padding": 4},
    "same": {"padding": "same", "dilation": 2, "kernel_size": 4},
    "valid, no bias": {"padding": "valid", "bias": False},
    "groups": {"groups": 4, "padding": 1},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "replicate, same": {"padding": "same", "padding_mode": "replicate", "kernel_size": 2},
    "circular, groups": {"padding": 2, "padding_mode": "circular", "groups": 2},
    "one wide": {"kernel_size": 1, "stride": 2},
}
CELLS: dict[str, Any] = {
    "lstm": lambda **more: nn.LSTMCell(8, 12, **more),
    "gru": lambda **more: nn.GRUCell(8, 12, **more),
    "tanh": lambda **more: nn.RNNCell(8, 12, **more),
    "relu": lambda **more: nn.RNNCell(8, 12, nonlinearity="relu", **more),
}


def attention(kind: str, dtype: torch.dtype = torch.float32) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(16, 4, dtype=dtype, **ATTENTION[kind]).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def conv(kind: str) -> nn.Conv1d:
    torch.manual_seed(0)
    return nn.Conv1d(8, 12, **{"kernel_size": 3, **CONVS[kind]})


def close(found: Any, truth: Any) -> None:
    if truth is None or found is None:
        assert found is truth
    elif isinstance(truth, tuple):
        for a, b in zip(found, truth, strict=True):
            close(a, b)
    else:
        assert found.shape == truth.shape
        torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)


def both(module: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The module and its unrolled self compute the same, in float64."""
    wide = copy.deepcopy(module).double()
    torch.manual_seed(1)
    truth = wide(*args, **kwargs)
    with unrolled(wide):
        torch.manual_seed(1)
        close(wide(*args, **kwargs), truth)
    close(wide(*args, **kwargs), truth)


def states(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_computes_the_same(kind: str, need_weights: bool) -> None:
    layer = attention(kind)
    first = layer.batch_first
    query, key, value = (
        states(3, length, width) if first else states(length, 3, width)
        for length, width in ((5, 16), (7, layer.kdim), (7, layer.vdim))
    )
    padding = torch.arange(7) >= torch.tensor([7, 4, 2])[:, None]
    floats = torch.zeros(3, 7, dtype=torch.float64).masked_fill(padding, float("-inf"))
    hidden = torch.rand(5, 7) < 0.3
    hidden[:, 0] = False
    for masks in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": hidden},
        {"attn_mask": states(5, 7)},
        {"attn_mask": hidden.expand(12, 5, 7), "key_padding_mask": padding},
        {"attn_mask": states(12, 5, 7), "key_padding_mask": floats},
    ):
        both(layer, query, key, value, need_weights=need_weights, **masks)
    both(layer, query, key, value, average_attn_weights=False, need_weights=need_weights)
    at = 0 if first else 1
    one = [t.select(at, 0) for t in (query, key, value)]
    both(layer, *one, need_weights=need_weights, key_padding_mask=padding[1], attn_mask=hidden)


@pytest.mark.parametrize("kind", ["plain", "batch first"])
def test_self_attention_reads_one_tensor_and_takes_hints(kind: str) -> None:
    layer = attention(kind)
    x = states(6, 6, 16)
    causal = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    for need_weights in (True, False):
        both(layer, x, x, x, attn_mask=causal, is_causal=True, need_weights=need_weights)
        both(layer, x, x, x, attn_mask=causal < 0, need_weights=need_weights)
    seen: list[int] = []
    with unrolled(layer.double()):
        for name in ("q_proj", "k_proj", "v_proj"):
            layer.get_submodule(name).register_forward_pre_hook(
                lambda _, args: seen.append(id(args[0]))
            )
        layer(x, x, x)
    assert seen == [id(x)] * 3


@pytest.mark.parametrize("kind", CONVS)
def test_convolutions_compute_the_same(kind: str) -> None:
    layer = conv(kind)
    both(layer, states(3, 8, 20))
    both(layer, states(8, 15))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_compute_the_same(kind: str, bias: bool) -> None:
    cell = CELLS[kind](bias=bias)
    state = states(3, 12)
    pair = (state, states(3, 12)) if kind == "lstm" else state
    one = tuple(t[0] for t in pair) if isinstance(pair, tuple) else state[0]
    both(cell, states(3, 8))
    both(cell, states(3, 8), pair)
    both(cell, states(8), one)


@pytest.mark.parametrize("kind", EXPERT_KINDS)
def test_experts_compute_the_same(kind: str) -> None:
    torch.manual_seed(0)
    layer = experts(kind)
    hidden, index, weights = routed()
    both(layer, hidden.double(), index, weights.double())


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_stacks_show_every_layer(norm_first: bool, padded: bool) -> None:
    """torch's fused layers and nested tensors would read weights without running the modules."""
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    mask = torch.arange(7) >= torch.tensor([7, 4, 2])[:, None] if padded else None
    x = torch.randn(3, 7, 16)
    keep = ~mask if mask is not None else torch.ones(3, 7, dtype=torch.bool)
    with torch.no_grad():
        truth = model(x, src_key_padding_mask=mask)
        before = torch.backends.mha.get_fastpath_enabled()
        with unrolled(model):
            ran: set[str] = set()
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear):
                    module.register_forward_pre_hook(lambda _, args, name=name: ran.add(name))
            found = model(x, src_key_padding_mask=mask)
        assert torch.backends.mha.get_fastpath_enabled() == before
        assert len(ran) == 12
        assert "layers.1.self_attn.q_proj" in ran
        torch.testing.assert_close(found[keep], truth[keep], rtol=1e-5, atol=1e-5)


def modules() -> list[nn.Module]:
    return [
        nn.LSTM(8, 12, bidirectional=True),
        CELLS["gru"](),
        attention("plain"),
        attention("all"),
        conv("groups"),
        experts("gpt_oss"),
    ]


@pytest.mark.parametrize("index", range(6))
def test_everything_is_as_it_was(index: int) -> None:
    model = nn.Sequential(modules()[index])
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    names = [name for name, _ in model.named_parameters()]
    held = dict(model[0].__dict__)
    children = list(dict(model.named_modules()))
    with unrolled(model), torch.no_grad():
        total = sum(p.numel() for p in model.parameters())
        addresses = {p.data_ptr() for p in model.parameters()}
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.zero_()
    assert [name for name, _ in model.named_parameters()] == names
    assert list(dict(model.named_modules())) == children
    assert model[0].__dict__ == held
    assert total == sum(p.numel() for p in model.parameters())  # nothing twice
    assert {p.data_ptr() for p in model.parameters()} <= addresses
    for name, parameter in model.named_parameters():
        if "weight" in name or name.endswith("proj"):
            assert not parameter.any(), name


def test_dropout_is_that_of_the_mode_it_is_run_in() -> None:
    network = nn.LSTM(8, 8, 2, dropout=0.5).train()
    model = nn.Sequential(network)
    x = torch.randn(5, 3, 8)
    with unrolled(model):
        model.eval()
        truth = model(x)[0]
        assert torch.equal(truth, model(x)[0])
    assert not model[0].training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_writes_reach_parameters_of_any_layout(dtype: torch.dtype) -> None:
    for layout in ("plain", "transposed"):
        layer = conv("plain").to(dtype)
        if layout == "transposed":
            layer.weight = nn.Parameter(
                layer.weight.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0)
            )
            assert not layer.weight.is_contiguous()
        address, weight = layer.weight.data_ptr(), layer.weight
        report = se.prune(nn.Sequential(layer), 0.5)
        assert [row.name for row in report.layers] == ["0.linears.0"]
        assert layer.weight is weight
        assert weight.data_ptr() == address
        assert weight.requires_grad
        assert int((weight == 0).sum()) == weight.numel() // 2
        attend = attention("plain", dtype)
        address = attend.in_proj_weight.data_ptr()
        se.prune(nn.Sequential(attend), 0.5)
        assert attend.in_proj_weight.data_ptr() == address
        for part in attend.in_proj_weight.chunk(3):
            assert int((part == 0).sum()) == part.numel() // 2


def test_shared_weights_are_pruned_once() -> None:
    one, two = attention("plain"), attention("plain")
    two.in_proj_weight = one.in_proj_weight
    a, b = conv("plain"), conv("same")
    b = nn.Conv1d(8, 12, 3, padding="same")
    b.weight = a.weight
    report = se.prune(nn.ModuleList([one, two, a, b, one]), 0.5)
    names = [row.name for row in report.layers]
    assert "0.q_proj" in names
    assert "1.q_proj" not in names
    assert "2.linears.0" in names
    assert "3.linears.0" not in names
    assert two.in_proj_weight is one.in_proj_weight


def test_blocks_of_a_convolution_are_blocks_of_its_sparse_twin() -> None:
    layer = nn.Conv1d(8, 16, 3, groups=2)
    report = se.prune(nn.Sequential(layer), 0.5, "4x4")
    assert [row.shape for row in report.layers] == [(8, 12), (8, 12)]
    for weight, part in zip(
        layer.weight.detach().flatten(1).chunk(2),
        SparseConv1d.from_dense(layer, "bsr:4x4").linears,
        strict=True,
    ):
        assert torch.equal(part.to_dense().weight, weight)
        tiles = weight.view(2, 4, 3, 4).transpose(1, 2).flatten(2).count_nonzero(-1)
        assert sorted(tiles.flatten().tolist()) == [0, 0, 0, 16, 16, 16]


def masked(module: Any, name: str) -> Any:
    from torch.nn.utils import prune

    return prune.random_unstructured(module, name, 0.5)


class Own(nn.Conv1d):
    """A subclass, which may compute something else."""


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Own(4, 4, 3), "it is a subclass of torch.nn.Conv1d"),
        (nn.Conv1d(8, 8, 3, groups=8), "it is depthwise"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_that_are_left_alone_are_named(module: nn.Module, why: str) -> None:
    model = nn.Sequential(module)
    names = list(dict(model.named_modules()))
    assert why in left_alone(model)["0"]
    with unrolled(model):
        assert list(dict(model.named_modules())) == names


@pytest.mark.parametrize(
    "module",
    [
        masked(nn.Conv1d(8, 8, 3), "weight"),
        masked(nn.MultiheadAttention(8, 2), "in_proj_weight"),
        masked(nn.LSTM(8, 8), "weight_hh_l0"),
        nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3)),
        nn.utils.parametrizations.weight_norm(nn.GRUCell(8, 8), "weight_hh"),
    ],
    ids=["mask-conv", "mask-attention", "mask-lstm", "norm-conv", "norm-cell"],
)
def test_weights_that_are_computed_are_folded_and_pruned(module: nn.Module) -> None:
    report = se.prune(nn.Sequential(module), 0.75, filter_fn=lambda layer, name: True)
    weights = [p for p in module.parameters() if p.dim() > 1]
    assert sum(layer.shape[0] * layer.shape[1] for layer in report.layers) == sum(
        weight.numel() for weight in weights
    )
    assert [layer.sparsity for layer in report.layers] == [0.75] * len(report.layers)
    assert all(int((weight == 0).sum()) == 0.75 * weight.numel() for weight in weights)


def test_attention_with_a_projection_of_its_own_is_left_alone() -> None:
    layer = nn.MultiheadAttention(8, 2)
    layer.out_proj = nn.Sequential()
    assert left_alone(layer) == {"": "its out_proj is a Sequential"}


@pytest.mark.parametrize(
    ("module", "of"),
    [
        (nn.Conv1d(4, 4, 3, device="meta"), "0.weight has no values"),
        (nn.MultiheadAttention(8, 2, device="meta"), "0.in_proj_weight has no values"),
    ],
    ids=["conv", "attention"],
)
def test_weights_without_values_are_one_line(module: nn.Module, of: str) -> None:
    with pytest.raises(UsageError, match=of) as caught:
        se.prune(nn.Sequential(module, nn.Linear(8, 8)), 0.5)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell])
def test_int8_modules_of_torch_are_one_line(kind: Any) -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3), kind(8, 8))
    quantized = torch.ao.quantization.quantize_dynamic(model, {kind})
    with pytest.raises(UsageError, match="1 is quantised already") as caught:
        se.prune(quantized, 0.5)
    assert "\n" not in str(caught.value)


class Watch(Criterion):
    """Magnitude that records the norms of inputs, by the shape of the weight."""

    name = "watch"
    needs = ("norms",)

    def __init__(self) -> None:
        self.norms: dict[torch.Size, Tensor] = {}

    def score(self, weight: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
        assert inputs.norms is not None
        self.norms[weight.shape] = inputs.norms
        return weight.square()


def test_steps_count_to_the_end_of_every_batch() -> None:
    """Also if later batches are longer than the first one."""
    torch.manual_seed(0)
    network = nn.LSTM(4, 6)
    batches = [torch.randn(length, 3, 4) for length in (2, 7, 5)]
    with torch.no_grad():
        before = torch.cat([network(x)[0][:-1].flatten(0, 1) for x in batches])
    watch = Watch()
    se.prune(nn.Sequential(network), 0.5, criterion=watch, calibration=batches)
    torch.testing.assert_close(watch.norms[torch.Size([24, 6])], before.norm(dim=0))
    everything = torch.cat([x.flatten(0, 1) for x in batches])
    torch.testing.assert_close(watch.norms[torch.Size([24, 4])], everything.norm(dim=0))


def test_statistics_of_a_convolution_are_those_of_its_windows() -> None:
    layer, watch = nn.Conv1d(4, 6, 3, groups=2, stride=2), Watch()
    x = torch.randn(2, 4, 9)
    se.prune(nn.Sequential(layer), 0.5, criterion=watch, calibration=[x])
    windows = x[:, 2:].unfold(2, 3, 2).transpose(1, 2).flatten(2).flatten(0, 1)  # of group 1
    torch.testing.assert_close(watch.norms[torch.Size([3, 6])], windows.norm(dim=0))
