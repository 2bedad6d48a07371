"""What is read natively is what would be computed: anything else runs layer by layer, and says so."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sparse_engine as se
from sparse_engine.eligible import why_not, why_not_inside
from sparse_engine.errors import UsageError
from sparse_engine.nn import NativeStack

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
IDS = torch.arange(14).view(2, 7) % 50


def thinned(model: nn.Module) -> nn.Module:
    """Three of four weights of every linear layer are zero; the others are large enough to matter."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            shape = module.weight.shape
            kept = torch.rand(shape, generator=generator) < 0.25
            value = torch.randn(shape, generator=generator) * 2 / math.sqrt(min(shape))
            module.weight.data = value * kept
    return model.eval()


def bert() -> Any:
    torch.manual_seed(0)
    return thinned(transformers.BertModel(transformers.BertConfig(**SIZES)))


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2)
    return thinned(transformers.LlamaForCausalLM(config))


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=40)
    return thinned(transformers.GPT2LMHeadModel(config))


def states(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS)[0]


def is_native(model: nn.Module) -> bool:
    return any(isinstance(module, NativeStack) for module in model.modules())


class Louder(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_class(module: nn.Module, name: str, kind: type) -> None:
    parent, _, child = name.rpartition(".")
    old: Any = module.get_submodule(name)
    new = kind(old.in_features, old.out_features)
    new.load_state_dict(old.state_dict())
    setattr(module.get_submodule(parent), child, new)


def louder_output(module: nn.Module, args: Any, output: Any) -> Any:
    return (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def patch(module: Any, factor: float = 1.5) -> None:
    old = module.forward
    module.forward = lambda *args, **kwargs: old(*args, **kwargs) * factor


ATTENTION = "encoder.layer.0.attention"
CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "subclass of Linear": (
        f"{ATTENTION}.self.query",
        lambda m: with_class(m, f"{ATTENTION}.self.query", Louder),
    ),
    "hook on a layer": (
        "encoder.layer.1",
        lambda m: m.encoder.layer[1].register_forward_hook(louder_output),
    ),
    "hook on a norm": (
        f"{ATTENTION}.output.LayerNorm",
        lambda m: m.get_submodule(f"{ATTENTION}.output.LayerNorm").register_forward_hook(
            louder_output
        ),
    ),
    "hook on a linear layer": (
        f"{ATTENTION}.self.value",
        lambda m: m.get_submodule(f"{ATTENTION}.self.value").register_forward_pre_hook(
            lambda module, args: (args[0] * 1.5,)
        ),
    ),
    "hook on the stack": (
        "encoder",
        lambda m: m.encoder.register_forward_hook(
            lambda module, args, output: setattr(
                output, "last_hidden_state", output.last_hidden_state * 1.5
            )
        ),
    ),
    "patched forward of a linear layer": (
        f"{ATTENTION}.self.key",
        lambda m: patch(m.get_submodule(f"{ATTENTION}.self.key")),
    ),
    "patched forward of a block": (
        "encoder.layer.0.intermediate",
        lambda m: patch(m.encoder.layer[0].intermediate),
    ),
    "another activation": (
        "encoder.layer.1.intermediate.intermediate_act_fn",
        lambda m: setattr(m.encoder.layer[1].intermediate, "intermediate_act_fn", nn.ReLU()),
    ),
    "another option": (
        "encoder.layer.1.attention.self",
        lambda m: setattr(m.encoder.layer[1].attention.self, "scaling", 1.0),
    ),
    "a module of another class": (
        "encoder.layer.0.output.LayerNorm",
        lambda m: setattr(m.encoder.layer[0].output, "LayerNorm", Doubled()),
    ),
    "more layers than the config": (
        "encoder.layer.2",
        lambda m: m.encoder.layer.append(copy.deepcopy(m.encoder.layer[0])),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_models_run_layer_by_layer_and_give_what_they_gave(change: str) -> None:
    name, make = CHANGES[change]
    model, plain = bert(), states(bert())
    make(model)
    expected = states(model)
    assert (expected - plain).abs().max() > 0.01  # the change counts
    report = se.sparsify_(model, "csr")
    assert not is_native(model)
    assert f"one by one: {name} " in report.blocks, report.blocks
    assert torch.allclose(states(model), expected, atol=1e-5)


# By then the stand-in is the stack, layers are sparse, and numbers on modules are not looked at.
NOT_LATER = {
    "hook on the stack",
    "subclass of Linear",
    "more layers than the config",
    "another option",
}


@pytest.mark.parametrize("change", sorted(CHANGES.keys() - NOT_LATER))
def test_changes_after_sparsify_count_too(change: str) -> None:
    name, make = CHANGES[change]
    model, same = bert(), bert()
    se.sparsify_(model, "csr")
    assert is_native(model)
    states(model)
    make(model)
    make(same)
    with pytest.warns(UserWarning, match=f"one by one: {name} "):
        found = states(model)
    assert torch.allclose(found, states(same), atol=1e-5)


def test_hooks_that_are_gone_leave_the_native_call() -> None:
    model = bert()
    expected = states(model)
    se.sparsify_(model, "csr")
    hook = model.encoder.layer[0].register_forward_hook(louder_output)
    with pytest.warns(UserWarning, match="forward hooks"):
        assert not torch.allclose(states(model), expected, atol=1e-3)
    hook.remove()
    torch.testing.assert_close(states(model), expected, atol=1e-5, rtol=1e-5)


def test_hooks_for_all_modules_are_called() -> None:
    model, seen = bert(), []
    se.sparsify_(model, "csr")
    states(model)
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(module)
    )
    try:
        with pytest.warns(UserWarning, match="hooks for all modules"):
            states(model)
    finally:
        hook.remove()
    assert any(module is model.encoder.layer[0] for module in seen)


def narrower_ffn(model: Any) -> None:
    layer = model.encoder.layer[1]
    for module, name in ((layer.intermediate, "dense"), (layer.output, "dense")):
        old = getattr(module, name)
        sizes = (32, 24) if module is layer.intermediate else (24, 32)
        new = nn.Linear(*sizes)
        new.weight.data = old.weight.data[: sizes[1], : sizes[0]].clone()
        new.bias.data = old.bias.data[: sizes[1]].clone()
        setattr(module, name, new)


def fewer_heads(model: Any) -> None:
    attention = model.encoder.layer[1].attention
    for name in ("query", "key", "value"):
        old = getattr(attention.self, name)
        new = nn.Linear(32, 16)
        new.weight.data, new.bias.data = old.weight.data[:16].clone(), old.bias.data[:16].clone()
        setattr(attention.self, name, new)
    old = attention.output.dense
    attention.output.dense = nn.Linear(16, 32)
    attention.output.dense.weight.data = old.weight.data[:, :16].clone()
    attention.self.num_attention_heads = 2
    attention.self.all_head_size = 16


@pytest.mark.parametrize("cut", [narrower_ffn, fewer_heads])
def test_one_narrower_layer_runs_layer_by_layer(cut: Callable[[Any], None]) -> None:
    model = bert()
    cut(model)
    expected = states(model)
    report = se.sparsify_(model, "csr")
    assert "one by one: encoder.layer.1" in report.blocks
    assert torch.allclose(states(model), expected, atol=1e-5)


def test_dropped_layers_stay_native() -> None:
    model = bert()
    model.encoder.layer = model.encoder.layer[:1]
    expected = states(model)
    assert "encoder: 1 bert layers run natively" in se.sparsify_(model, "csr").blocks
    assert torch.allclose(states(model), expected, atol=1e-5)


def test_a_subclass_of_the_stack_is_called() -> None:
    class Own(type(bert().encoder)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.last_hidden_state = output.last_hidden_state + 1
            return output

    model = bert()
    model.encoder.__class__ = Own
    expected = states(model)
    assert "encoder is a Own" in se.sparsify_(model, "csr").blocks
    assert torch.allclose(states(model), expected, atol=1e-5)


def test_a_forward_replaced_in_the_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bert()
    kind = type(model.encoder.layer[0].output)
    old = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x, residual: old(self, x, residual) * 1.5)
    expected = states(model)
    assert "whose forward was replaced" in se.sparsify_(model, "csr").blocks
    assert torch.allclose(states(model), expected, atol=1e-5)


def test_attention_of_ones_own_is_called() -> None:
    def averaged(
        module: Any, query: Any, key: Any, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        return value.mean(2, keepdim=True).expand_as(value).transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("averaged", averaged)
    model = bert()
    model.config._attn_implementation = "averaged"
    expected = states(model)
    assert "computes attention by 'averaged'" in se.sparsify_(model, "csr").blocks
    assert torch.allclose(states(model), expected, atol=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_decoders_are_looked_at_too(make: Callable[[], Any]) -> None:
    model = make()
    first = model.get_submodule("model.layers.0.mlp" if make is llama else "transformer.h.0.mlp")
    first.register_forward_hook(louder_output)
    expected = states(model)
    assert "mlp has forward hooks" in se.sparsify_(model, "csr").blocks
    assert torch.allclose(states(model), expected, atol=1e-4)


def test_a_cache_is_not_read_past_a_hook() -> None:
    model = llama()
    se.sparsify_(model, "csr")
    with torch.inference_mode():
        cache = model(input_ids=IDS, use_cache=True).past_key_values
        model.model.layers[0].register_forward_hook(louder_output)
        with pytest.raises(
            UsageError, match=r"layer by layer, but model.layers.0 has forward hooks"
        ):
            model(input_ids=IDS[:, :1], past_key_values=cache)


def test_adapters_count() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query", "value"], init_lora_weights=False)
    model = peft.get_peft_model(bert(), config).eval()
    adapted = states(model)
    with model.disable_adapter():
        bare = states(model)
    assert (adapted - bare).abs().max() > 0.01
    report = se.sparsify_(model, "csr")
    assert "query is a Linear" in report.blocks
    assert torch.allclose(states(model), adapted, atol=1e-5)
    with model.disable_adapter():
        assert torch.allclose(states(model), bare, atol=1e-5)


def test_adapters_that_come_later_count() -> None:
    peft = pytest.importorskip("peft")
    dense_value = lambda module, name: not name.endswith("value")  # noqa: E731
    model, same = bert(), bert()
    se.sparsify_(model, "csr", filter_fn=dense_value)
    assert is_native(model)
    config = peft.LoraConfig(target_modules=["value"], init_lora_weights=False)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(model, config).eval()
    torch.manual_seed(3)
    expected = peft.get_peft_model(same, copy.deepcopy(config)).eval()
    with pytest.warns(UserWarning, match="one by one: encoder.layer.0.attention.self.value is a"):
        found = states(adapted)
    assert torch.allclose(found, states(expected), atol=1e-5)


class Net(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.inner, self.out = kind(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.out(y[0] if isinstance(y, tuple) else y)


@pytest.mark.parametrize("kind", [nn.Linear, nn.LSTM, nn.GRU, nn.RNN, nn.GRUCell])
@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward", "subclass"])
def test_every_swap_leaves_what_is_more_than_its_class(kind: type[nn.Module], how: str) -> None:
    torch.manual_seed(0)
    own = type("Own", (kind,), {})
    model = Net(own if how == "subclass" else kind).eval()
    for name, parameter in model.named_parameters():
        if "weight" in name:
            parameter.data *= torch.rand_like(parameter) < 0.3
    if how == "hook":
        model.inner.register_forward_hook(louder_output)
    elif how == "pre-hook":
        model.inner.register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))
    elif how == "forward":
        old = model.inner.forward
        model.inner.forward = lambda x: old(1.5 * x)
    x = torch.randn(3, 8)
    expected = model(x)
    report = se.sparsify_(model, "csr")
    reasons = {row.name.split(".")[0]: row.reason for row in report.rows}
    told = {
        "hook": "hooks",
        "pre-hook": "hooks",
        "forward": "forward of its own",
        "subclass": "Own",
    }
    assert told[how] in reasons["inner"]
    assert reasons["out"] == "asked for"
    assert torch.allclose(model(x), expected, atol=1e-5)


class Quantised(Tensor):
    """Stands for the tensors of torchao."""


def test_weights_that_are_no_plain_tensors_are_left_alone() -> None:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.Tensor._make_subclass(Quantised, torch.zeros(4, 4)))
    assert why_not(layer, nn.Linear) == "has a weight that is a Quantised"


def test_parametrizations_are_named() -> None:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Doubled())
    assert why_not(layer, nn.Linear) == "has a parametrization of weight"
    assert why_not_inside(nn.Sequential(nn.Linear(4, 4), nn.ReLU())) == ""


def test_a_sparse_encoder_layer_calls_what_has_hooks() -> None:
    torch.manual_seed(0)
    dense = thinned(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True))
    layer = se.nn.SparseTransformerEncoderLayer.from_dense(dense, "csr").eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = layer(x)
        layer.norm2.register_forward_hook(louder_output)
        with pytest.warns(UserWarning, match="norm2 has forward hooks"):
            found = layer(x)
    assert torch.allclose(found, 1.5 * expected, atol=1e-5)


def test_models_stay_callable_outside_no_grad_and_flags_come_back() -> None:
    model = bert()
    model.encoder.layer[0].output.LayerNorm.bias.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert len(set(flags.values())) == 2
    expected = states(model)
    se.sparsify_(model, "csr")
    assert is_native(model)
    for one in (model, copy.deepcopy(model)):
        y = one(input_ids=IDS)[0]
        assert not y.requires_grad
        assert torch.allclose(y, expected, atol=1e-5)
        se.densify_(one)
        assert {name: p.requires_grad for name, p in one.named_parameters()} == flags
        assert torch.allclose(states(one), expected, atol=1e-5)


def test_flags_of_networks_and_of_parts_come_back() -> None:
    model = nn.Sequential(nn.Embedding(9, 8), Net(nn.LSTM), nn.LayerNorm(8)).eval()
    for name, parameter in model.named_parameters():
        if "weight" in name:
            parameter.data *= torch.rand_like(parameter) < 0.3
    model[2].weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    se.sparsify_(model[1], "csr")
    se.sparsify_(model, "csr")
    assert not model(torch.arange(6)).requires_grad
    se.densify_(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


@pytest.mark.parametrize(
    "call", [se.sparsify_, lambda m, c: se.prune(m, 0.5)], ids=["sparsify", "prune"]
)
def test_weights_that_cannot_be_read_are_one_line(call: Callable[[Any, str], Any]) -> None:
    with torch.device("meta"):
        empty = Net(nn.Linear)
    with pytest.raises(UsageError, match=r"inner.weight has no values, it is on the meta device"):
        call(empty, "csr")
    half = Net(nn.LSTM)
    half.out.to("meta")
    with pytest.raises(UsageError, match=r"out.weight has no values"):
        call(half, "csr")
    quantised = torch.ao.quantization.quantize_dynamic(Net(nn.Linear), {nn.Linear}, torch.qint8)
    with pytest.raises(UsageError, match=r"inner is quantised already"):
        call(quantised, "csr")


def test_layers_whose_weight_is_read_are_left_or_refused() -> None:
    """A meta tensor times an ordinary one gives garbage without an error."""
    sizes = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
    config = transformers.MambaConfig(**sizes, time_step_rank=8)
    torch.manual_seed(0)
    mamba = transformers.MambaForCausalLM(config).eval()
    report = se.prune(mamba, 0.8)
    assert sum("read or written by a MambaMixer" in left.reason for left in report.left) == 2
    for module in mamba.modules():  # whoever pruned them
        if isinstance(module, nn.Linear):
            module.weight.data[module.weight.abs() < 0.01] = 0
    ids = torch.randint(96, (2, 9))
    with torch.inference_mode():
        expected = mamba(ids).logits
        report_of_swap = se.sparsify_(mamba, "csr")
        torch.testing.assert_close(mamba(ids).logits, expected, rtol=0, atol=2e-5)
    kept = [row for row in report_of_swap.rows if row.name.endswith("dt_proj")]
    assert [row.format for row in kept] == ["dense"] * 2

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            return self.fc.weight @ x.to(self.fc.weight.dtype)

    own = Own()
    se.prune(own, 0.5)
    se.sparsify_(own, "csr")
    assert (own.fc.weight.dtype, own.fc.weight.shape) == (torch.float32, (8, 8))
    with pytest.raises(UsageError, match="reads that weight instead of calling the layer"):
        own(torch.randn(8, 3))
