"""Native stacks replace only layers that are what their config describes; others run one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from takeover_models import (
    IDS,
    Doubled,
    Louder,
    bert,
    gpt2,
    is_native,
    llama,
    louder_output,
    patch,
    states,
    with_class,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sparse_engine as se
from sparse_engine.errors import UsageError

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
    "patched forward of a layer": (
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
    "parametrization of a norm": (
        f"{ATTENTION}.output.LayerNorm",
        lambda m: parametrize.register_parametrization(
            m.get_submodule(f"{ATTENTION}.output.LayerNorm"), "weight", Doubled()
        ),
    ),
    "another shape of a buffer": (
        "encoder.layer.0.intermediate",
        lambda m: m.encoder.layer[0].intermediate.register_buffer("table", torch.zeros(3)),
    ),
    "more layers than the config": (
        "encoder.layer.2",
        lambda m: m.encoder.layer.append(copy.deepcopy(m.encoder.layer[0])),
    ),
}


# `sparsify_` replaces parametrized weights by their values: then the layers run natively.
FOLDED = {"parametrization of a norm"}
WITHOUT_EFFECT = {"another shape of a buffer"}


@pytest.mark.parametrize("change", sorted(CHANGES.keys() - FOLDED))
def test_changed_models_run_layer_by_layer_and_give_what_they_gave(change: str) -> None:
    name, make = CHANGES[change]
    model, plain = bert(), states(bert())
    make(model)
    expected = states(model)
    assert change in WITHOUT_EFFECT or (expected - plain).abs().max() > 0.01
    report = se.sparsify_(model, "csr")
    assert not is_native(model)
    assert f"one by one: {name} " in report.native, report.native
    assert torch.allclose(states(model), expected, atol=1e-5)


# By then the proxy is the stack, layers are sparse, and options of modules are not compared.
NOT_LATER = {
    "hook on the stack",
    "subclass of Linear",
    "more layers than the config",
    "another option",
    "another shape of a buffer",
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


def test_parametrized_weights_are_folded_and_run_natively() -> None:
    model = bert()
    CHANGES["parametrization of a norm"][1](model)
    expected = states(model)
    se.sparsify_(model, "csr")
    assert is_native(model)
    torch.testing.assert_close(states(model), expected, atol=1e-5, rtol=1e-5)


def test_hooks_that_are_gone_leave_the_native_call() -> None:
    model = bert()
    expected = states(model)
    se.sparsify_(model, "csr")
    hook = model.encoder.layer[0].register_forward_hook(louder_output)
    with pytest.warns(UserWarning, match="forward hooks"):
        assert not torch.allclose(states(model), expected, atol=1e-3)
    hook.remove()
    torch.testing.assert_close(states(model), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("before", [True, False])
def test_monte_carlo_dropout_runs_layer_by_layer(before: bool) -> None:
    model = bert()
    plain = states(model)
    dropout = model.encoder.layer[1].output.dropout
    dropout.train(before)
    se.sparsify_(model, "csr")
    assert dropout.training == before
    dropout.train()
    name = "encoder.layer.1.output.dropout"
    with pytest.warns(UserWarning, match=f"one by one: {name} is in training mode"):
        first, second = states(model), states(model)
    assert not torch.equal(first, second)
    model.eval()
    torch.testing.assert_close(states(model), plain, atol=1e-5, rtol=1e-5)


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
def test_one_narrower_layer_stays_native(cut: Callable[[Any], None]) -> None:
    model = bert()
    cut(model)
    expected = states(model)
    assert "encoder: 2 bert layers run natively" in se.sparsify_(model, "csr").native
    assert torch.allclose(states(model), expected, atol=1e-5)


def test_heads_that_an_attention_does_not_count_run_layer_by_layer() -> None:
    model = bert()
    fewer_heads(model)
    model.encoder.layer[1].attention.self.num_attention_heads = 4
    expected = states(model)
    report = se.sparsify_(model, "csr")
    assert "one by one: encoder.layer.1.attention.self has num_attention_heads 4" in report.native
    assert torch.allclose(states(model), expected, atol=1e-5)


def test_dropped_layers_stay_native() -> None:
    model = bert()
    model.encoder.layer = model.encoder.layer[:1]
    expected = states(model)
    assert "encoder: 1 bert layer runs natively" in se.sparsify_(model, "csr").native
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
    assert "encoder is a Own" in se.sparsify_(model, "csr").native
    assert torch.allclose(states(model), expected, atol=1e-5)


def test_a_forward_replaced_in_the_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bert()
    kind = type(model.encoder.layer[0].output)
    old = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x, residual: old(self, x, residual) * 1.5)
    expected = states(model)
    assert "whose forward was replaced" in se.sparsify_(model, "csr").native
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
    assert "computes attention by 'averaged'" in se.sparsify_(model, "csr").native
    assert torch.allclose(states(model), expected, atol=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_decoders_are_looked_at_too(make: Callable[[], Any]) -> None:
    model = make()
    first = model.get_submodule("model.layers.0.mlp" if make is llama else "transformer.h.0.mlp")
    first.register_forward_hook(louder_output)
    expected = states(model)
    assert "mlp has forward hooks" in se.sparsify_(model, "csr").native
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
    assert "query is a Linear" in report.native
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
