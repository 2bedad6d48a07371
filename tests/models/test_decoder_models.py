"""Decoders of transformers, run natively, agree with transformers in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from decoder_models import FULL, KINDS, SLIDING, hugging
from family_models import widened
from torch import Tensor

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.nn import NativeDecoder

pytest.importorskip("transformers")

from sparse_engine.nn.native.cache import native_cache_layer

transformers = pytest.importorskip("transformers")

# transformers 5.24 has another name for it.
OUTPUT = transformers.modeling_outputs.BaseModelOutputWithPast
CACHE = "cache" if "cache" in OUTPUT.__dataclass_fields__ else "past_key_values"


def reference(model: Any) -> Any:
    """A copy, in float64 where that has no NaN."""
    return widened(copy.deepcopy(model))


def batch(padding: str, lengths: tuple[int, ...] = (70, 30, 1, 64)) -> dict[str, Tensor]:
    longest = max(lengths)
    ids = torch.randint(3, 90, (len(lengths), longest), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        if padding == "right":
            mask[row, length:] = 0
        elif padding == "left":
            mask[row, : longest - length] = 0
    ids[mask == 0] = 0
    return {"input_ids": ids, "attention_mask": mask}


def sparse(model: Any, spec: str = "csr", dtype: str = "float32") -> Any:
    report = se.sparsify_(model, se.SparseConfig(spec, dtype))
    assert "natively" in report.native
    assert any(isinstance(m, NativeDecoder) for m in model.modules())
    return model


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_agree_with_transformers(
    kind: str, padding: str, recwarn: pytest.WarningsRecorder
) -> None:
    model, inputs = hugging(kind), batch(padding)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    names = list(model.state_dict())
    expected = reference(model)(**inputs, use_cache=False).logits
    seen = inputs["attention_mask"].bool()
    sparse(model)
    for use_cache in (True, False):
        y = model(**inputs, use_cache=use_cache).logits
        assert (y - expected)[seen].abs().max() < 1e-5 * expected[seen].abs().max()
    assert not any("one by one" in str(w.message) for w in recwarn)
    se.densify_(model)
    assert not any(isinstance(m, NativeDecoder) for m in model.modules())
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("spec", ["csr", "sellp", "bitmask", "bsr:16x1"])
@pytest.mark.parametrize("kind", KINDS)
def test_generate_gives_the_tokens_of_transformers(kind: str, spec: str) -> None:
    """Greedy, from prompts of several lengths, until each sequence ends."""
    model, inputs = hugging(kind), batch("left", (40, 3, 11))
    options = dict(max_new_tokens=40, do_sample=False, eos_token_id=[2, 7, 11])
    expected = reference(model).generate(**inputs, **options)
    found = sparse(model, spec).generate(**inputs, **options)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": True, "temperature": 0.7, "top_k": 20},
        {"do_sample": True, "top_p": 0.8, "repetition_penalty": 1.3},
        {"num_beams": 3},
        {"num_beams": 2, "do_sample": True, "num_return_sequences": 2},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
def test_every_way_to_generate(how: dict[str, Any]) -> None:
    model = hugging("llama")
    inputs = batch("left", (12,) if "prompt_lookup_num_tokens" in how else (12, 5))
    dense = copy.deepcopy(model)
    sparse(model)
    found = []
    for which in (dense, model, model):
        torch.manual_seed(5)
        found.append(which.generate(**inputs, max_new_tokens=20, **how))
    assert torch.equal(found[1], found[2])  # a seed repeats exactly
    assert torch.equal(found[0], found[1])


def test_tokens_are_streamed() -> None:
    model, inputs = sparse(hugging("llama")), batch("none", (9,))
    received: list[int] = []

    class Streamer(transformers.generation.streamers.BaseStreamer):  # type: ignore[name-defined,misc]
        def put(self, value: Tensor) -> None:
            received.extend(value.flatten().tolist())

        def end(self) -> None:
            received.append(-1)

    found = model.generate(**inputs, max_new_tokens=6, do_sample=False, streamer=Streamer())
    assert received == [*found[0].tolist(), -1]


@pytest.mark.parametrize("steps", [[5, 1, 1, 3], [1, 1], [7, 9, 1], [66, 64, 1, 2]], ids=str)
def test_a_cache_goes_on_where_it_stopped(steps: list[int]) -> None:
    model = hugging("qwen3")
    ids = torch.randint(3, 90, (2, sum(steps)), generator=torch.Generator().manual_seed(1))
    expected = copy.deepcopy(model).double()(ids, use_cache=False).logits
    sparse(model)
    cache, found = None, []
    for part in ids.split(steps, 1):
        given = {} if cache is None else {CACHE: cache}
        output = model(part, use_cache=True, **given)
        cache = output[CACHE]
        found.append(output.logits)
    assert cache.get_seq_length() == sum(steps)
    assert native_cache_layer(cache).nbytes > 0
    assert (torch.cat(found, 1) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_dtypes_are_near(dtype: str) -> None:
    model, inputs = hugging("llama"), batch("none", (33, 33))
    expected = model(**inputs).logits
    sparse(model, "csr", dtype)
    cache = model(**{k: v[:, :30] for k, v in inputs.items()}, use_cache=True)[CACHE]
    inputs["input_ids"] = inputs["input_ids"][:, 30:]
    y = model(**inputs, **{CACHE: cache}).logits
    error = (y - expected[:, 30:]).norm() / expected[:, 30:].norm()
    assert error < {"bfloat16": 2e-2, "int8": 1e-1}[dtype]


@pytest.mark.parametrize(
    ("dtype", "asked", "kept"),
    [
        ("float32", None, "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("int8", None, "bfloat16"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_keys_and_values_are_kept_as_weights_are(dtype: str, asked: str | None, kept: str) -> None:
    model = sparse(hugging("llama"), "csr", dtype)
    decoder = model.model
    assert isinstance(decoder, NativeDecoder)
    decoder.cache_dtype = asked
    out = model(torch.tensor([[5, 6, 7]]), use_cache=True)
    layer = native_cache_layer(out[CACHE])
    assert layer is not None
    assert layer.native.dtype == kept


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_packages_and_heads(kind: str, tmp_path: Any) -> None:
    model, inputs = hugging(kind, "ForSequenceClassification", num_labels=3), batch("right")
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "dense")
    sparse(model)
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    se.save(model, tmp_path / "package", source=tmp_path / "dense")
    loaded = se.load(tmp_path / "package")
    assert any(isinstance(m, NativeDecoder) for m in loaded.modules())
    torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


def test_what_runs_layer_by_layer_says_so() -> None:
    model, inputs = hugging("llama"), batch("none")
    expected = model(**inputs, output_hidden_states=True)
    sparse(model)
    with pytest.warns(UserWarning, match="one by one"):
        output = model(**inputs, output_hidden_states=True, use_cache=False)
    assert len(output.hidden_states) == len(expected.hidden_states) == 4
    static = transformers.StaticCache(config=model.config, max_cache_len=100)
    with pytest.warns(UserWarning, match="StaticCache"):
        output = model(**inputs, **{CACHE: static})
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-3, rtol=1e-4)


def test_models_without_native_layers_say_why() -> None:
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    for kind, more, why in (
        ("llama", {"rope_parameters": dynamic}, "rope_type 'dynamic'"),
        ("llama", {"hidden_act": "tanh"}, "tanh"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("qwen2", {"layer_types": ["full_attention"] * 2 + ["chunked_attention"]}, "chunked"),
    ):
        assert why in se.sparsify_(hugging(kind, **more), "csr").native


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
def test_decoders_without_a_head(kind: str, padding: str) -> None:
    """What embedding models are: no module holds them, so their forward is replaced."""
    model, inputs = hugging(kind, "Model"), batch(padding)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    names, seen = list(model.state_dict()), inputs["attention_mask"].bool()
    expected = reference(model)(**inputs, use_cache=False).last_hidden_state[seen]
    report = se.sparsify_(model, "csr")
    assert "3 " in report.native
    assert "natively" in report.native
    copied = copy.deepcopy(model)
    for which in (model, copied):
        y = which(**inputs).last_hidden_state[seen]
        assert (y - expected).abs().max() < 1e-5 * expected.abs().max()
    assert vars(copied)["forward"].__self__.original is copied
    with torch.no_grad():
        copied.get_submodule(vars(copied)["forward"].__self__.stack.final_norm).weight.zero_()
    assert torch.equal(model(**inputs).last_hidden_state[seen], y)  # a copy of its own
    model.train()
    with pytest.warns(UserWarning, match="training mode"):
        model(**inputs)
    model.eval()
    se.densify_(model)
    assert "forward" not in vars(model)
    assert list(model.state_dict()) == names


def test_each_layer_has_the_window_of_its_type() -> None:
    model = sparse(hugging("qwen2, last layers"))
    assert [layer.window for layer in model.model.stack.geometry] == [0, 9, 9]
    few = hugging("qwen2, alternating windows")
    few.config.layer_types = [SLIDING]
    assert "1 entries for 3 layers" in se.sparsify_(few, "csr").native
    other = hugging("qwen2, alternating windows")  # built with windows that its config lost
    other.config.layer_types = [FULL, SLIDING, FULL]
    assert "layers.0.self_attn has" in se.sparsify_(other, "csr").native


def test_bad_input_is_refused() -> None:
    model, inputs = sparse(hugging("llama")), batch("left", (5, 3))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    cache = model(**inputs, use_cache=True)[CACHE]
    other = sparse(hugging("qwen2"))(**inputs, use_cache=True)[CACHE]
    one, three = torch.ones(2, 1, dtype=torch.long), torch.ones(3, 1, dtype=torch.long)
    grown = torch.cat([mask, one], 1)
    for given, why in (
        ({"input_ids": ids + 200}, "from 0 to 98"),
        ({"input_ids": ids - 200}, "from 0 to 98"),
        ({"input_ids": torch.ones(1, 201, dtype=torch.long)}, "past the model's 200 positions"),
        ({"input_ids": ids, "attention_mask": mask * 0}, "masked as a whole"),
        ({"input_ids": ids, "attention_mask": grown}, "the mask is"),
        ({"input_ids": one, CACHE: other}, "another model's"),
        ({"input_ids": three, CACHE: cache}, "sequences"),
        (
            {"input_ids": one, CACHE: cache, "attention_mask": grown * 0 + 1},
            "other earlier tokens",
        ),
        ({"input_ids": one, CACHE: cache, "output_attentions": True}, "layer by layer"),
        ({"inputs_embeds": torch.ones(1, 2, 59)}, "inputs_embeds"),
        ({"input_ids": one[0]}, "expected"),
    ):
        with pytest.raises(UsageError, match=why):
            model(**given)
    model(one, attention_mask=grown, **{CACHE: cache})  # nothing was harmed
    assert native_cache_layer(cache).native.lengths == [6, 4]


def test_an_empty_cache_of_transformers_is_filled() -> None:
    """And a copy goes on from the same tokens, with the original none the wiser."""
    model, ids = hugging("llama"), torch.randint(3, 90, (2, 80))
    expected = copy.deepcopy(model).double()(ids, use_cache=False).logits
    sparse(model)
    cache = transformers.DynamicCache(config=model.config)
    model(ids[:, :70], **{CACHE: cache})
    assert cache.get_seq_length() == 70
    twin = copy.deepcopy(cache)
    for held in (cache, twin):
        y = model(ids[:, 70:75], **{CACHE: held}).logits
        assert (y - expected[:, 70:75]).abs().max() < 1e-5 * expected.abs().max()
    y = model(ids[:, 75:], **{CACHE: twin}).logits
    assert (y - expected[:, 75:]).abs().max() < 1e-5 * expected.abs().max()
    assert (cache.get_seq_length(), twin.get_seq_length()) == (75, 80)


def test_sequences_in_one_row_run_layer_by_layer() -> None:
    model, ids = hugging("llama"), torch.randint(3, 90, (1, 9))
    given = {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]), "use_cache": False}
    expected = copy.deepcopy(model)(ids, **given).logits
    sparse(model)
    with pytest.warns(UserWarning, match="several sequences"):
        torch.testing.assert_close(model(ids, **given).logits, expected, atol=1e-3, rtol=1e-4)


def test_a_window_is_where_its_family_says() -> None:
    ids = torch.randint(3, 90, (1, 40))
    for kind, more in (
        ("llama", {"sliding_window": 5}),  # has none, although its config names one
        ("mistral, window", {"layer_types": ["full_attention"] * 3}),  # has one all the same
    ):
        model = hugging(kind)
        for name, value in more.items():
            setattr(model.config, name, value)
        expected = copy.deepcopy(model).double()(ids, use_cache=False).logits
        y = sparse(model)(ids).logits
        assert (y - expected).abs().max() < 1e-5 * expected.abs().max()


def test_padding_between_tokens_is_refused_where_distances_count() -> None:
    ids = torch.randint(3, 90, (1, 20))
    mask = torch.ones_like(ids)
    mask[0, 4] = 0
    for kind in ("mistral, window", "qwen3, one window"):
        with pytest.raises(UsageError, match="between tokens"):
            sparse(hugging(kind))(ids, attention_mask=mask)
    sparse(hugging("llama"))(ids, attention_mask=mask)


def test_a_module_that_is_replaced_is_seen() -> None:
    model, ids = sparse(hugging("llama")), torch.randint(3, 90, (1, 9))
    before = model(ids).logits
    mlp = model.model.layers[1].mlp
    twice = mlp.up_proj.to_dense()
    twice.weight.data.mul_(2)
    mlp.up_proj = se.nn.SparseLinear.from_dense(twice, "csr")
    assert not torch.allclose(model(ids).logits, before)


def test_hidden_states_asked_for_by_the_config() -> None:
    model, ids = sparse(hugging("llama")), torch.randint(3, 90, (1, 9))
    model.config.output_hidden_states = True
    with pytest.warns(UserWarning, match="output_hidden_states"):
        assert len(model(ids, use_cache=False).hidden_states) == 4


@pytest.mark.parametrize("kind", ["llama", "llama 3"])
def test_rotary_tables_are_built_as_far_as_positions_go(kind: str) -> None:
    """A config may name far more positions than are used: tables for all would be gigabytes."""
    dense = hugging(kind, max_position_embeddings=10**8)
    model = copy.deepcopy(dense)
    se.sparsify_(model, "csr")
    ids = torch.randint(3, 99, (1, 5), generator=torch.Generator().manual_seed(1))
    sizes = []
    for first in (0, 1020, 3000, 7):
        places = torch.arange(first, first + 5)[None]
        with torch.inference_mode():
            got = model(input_ids=ids, position_ids=places).logits
            expected = dense.double()(input_ids=ids, position_ids=places).logits
        assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5
        sizes.append(model.model.rotary_positions)
    assert sizes == [1024, 2048, 4096, 4096]
    with pytest.raises(UsageError, match="position 100000000 is past the model's 100000000"):
        model(input_ids=ids, position_ids=torch.arange(10**8 - 4, 10**8 + 1)[None])
