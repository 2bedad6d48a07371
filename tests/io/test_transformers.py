"""Packages of transformers models: rebuilt from config.json alone, no code and no names
from files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    HubertConfig,
    HubertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
)

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.io import load, load_pretrained, save, save_checkpoint
from sparse_engine.nn import SparseLinear

torch.set_num_threads(1)
SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIDE = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}
BERT = {**SMALL, "intermediate_size": 64, "max_position_embeddings": 40}


def bert() -> Any:
    return BertModel(BertConfig(**BERT))


def masked_lm() -> Any:
    return BertForMaskedLM(BertConfig(**BERT))


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=40, n_embd=32, n_layer=2, n_head=4)
    )


def llama() -> Any:
    config = LlamaConfig(**SMALL, intermediate_size=64, tie_word_embeddings=True)
    return LlamaForCausalLM(config)


def bart() -> Any:
    sides = [(f"{side}_{key}", n) for side in ("encoder", "decoder") for key, n in SIDE.items()]
    config = BartConfig(vocab_size=50, max_position_embeddings=40, d_model=32, **dict(sides))
    return BartForConditionalGeneration(config)


def sparse(make: Callable[[], Any], spec: str = "csr", dtype: str = "float32") -> Any:
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.mul_(torch.rand_like(module.weight) < 0.2)
    report = se.sparsify_(model, se.SparseConfig(format=spec, dtype=dtype))
    assert report.swapped or make is gpt2  # whose layers are no nn.Linear
    return model


def inputs(model: Any) -> dict[str, Tensor]:
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))
    extra = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    return {"input_ids": tokens, **extra}


def first_output(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(**inputs(model))[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [bert, masked_lm, gpt2, llama, bart])
def test_round_trip(make: Callable[[], Any], dtype: str, tmp_path: Path) -> None:
    model = sparse(make, dtype=dtype)
    save(model, tmp_path / "a")
    state = torch.get_rng_state()
    loaded: Any = load(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(first_output(loaded), first_output(model))
    got, expected = dict(loaded.named_buffers()), dict(model.named_buffers())
    assert got.keys() == expected.keys()
    for name, buffer in expected.items():  # the non-persistent ones too
        assert torch.equal(got[name], buffer), name


@pytest.mark.parametrize("spec", ["csr", "bsr:4x1", "bitmask"])
def test_formats(spec: str, tmp_path: Path) -> None:
    model = sparse(bert, spec)
    save(model, tmp_path / "a")
    loaded: Any = load(tmp_path / "a")
    layer = loaded.encoder.layer[0].output.dense
    assert isinstance(layer, SparseLinear)
    assert layer.format == spec
    assert torch.equal(first_output(loaded), first_output(model))


def test_ties_come_back(tmp_path: Path) -> None:
    save(sparse(masked_lm), tmp_path / "a")
    loaded: Any = load(tmp_path / "a")
    decoder = loaded.cls.predictions.decoder
    assert decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    assert decoder.bias is loaded.cls.predictions.bias


def test_generation_works(tmp_path: Path) -> None:
    model = sparse(llama)
    model.generation_config.max_new_tokens = 3
    model.generation_config.save_pretrained(tmp_path / "source")
    model.config.save_pretrained(tmp_path / "source")
    save(model, tmp_path / "a", source=tmp_path / "source")
    loaded: Any = load(tmp_path / "a")
    assert loaded.generation_config.max_new_tokens == 3
    with torch.inference_mode():
        got = loaded.generate(inputs(loaded)["input_ids"], do_sample=False)
    assert got.shape == (2, 12)


def test_no_dense_weight_is_copied(tmp_path: Path) -> None:
    save(sparse(bert), tmp_path / "a")
    loaded = load(tmp_path / "a")
    inode = str((tmp_path / "a/sparse_engine.safetensors").stat().st_ino)
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split()
        if fields[4] == inode:
            low, high = (int(part, 16) for part in fields[0].split("-"))
            spans.append(range(low, high))
    for name, parameter in loaded.named_parameters():
        assert any(parameter.data_ptr() in span for span in spans), name


def test_config_is_copied_byte_for_byte(tmp_path: Path) -> None:
    model = sparse(bert)
    source = tmp_path / "source"
    model.config.save_pretrained(source)
    text = (source / "config.json").read_text().replace("\n", "\n  ")
    (source / "config.json").write_text(text)
    save(model, tmp_path / "a", source=source)
    assert (tmp_path / "a/config.json").read_text() == text
    load(tmp_path / "a")


def test_sizes_of_the_model_replace_those_of_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    BertConfig(**{**BERT, "intermediate_size": 48}).save_pretrained(source)
    model = sparse(bert)
    save(model, tmp_path / "a", source=source)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["intermediate_size"] == 64
    assert torch.equal(first_output(load(tmp_path / "a")), first_output(model))


def test_a_package_is_a_source_too(tmp_path: Path) -> None:
    save(sparse(bert), tmp_path / "a", recipe={"sparsity": 0.8})
    save(load(tmp_path / "a"), tmp_path / "b", source=tmp_path / "a")
    for name in ("sparse_engine.safetensors", "sparse_engine.json", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_model_cast_to_bfloat16(tmp_path: Path) -> None:
    model = sparse(bert).bfloat16()
    save(model, tmp_path / "a")
    loaded: Any = load(tmp_path / "a")
    # What was cast keeps its packing; what is loaded has that of its dtype, which may round.
    torch.testing.assert_close(first_output(loaded), first_output(model), rtol=2e-2, atol=2e-2)


def test_source_without_config(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(UsageError, match=r"has no config\.json"):
        save(sparse(bert), tmp_path / "a", source=tmp_path / "source")
    with pytest.raises(UsageError, match="is not a folder"):
        save(sparse(bert), tmp_path / "a", source=tmp_path / "none")


class Custom(BertModel):
    pass


def test_a_subclass_is_a_plain_module(tmp_path: Path) -> None:
    model = sparse(lambda: Custom(BertConfig(**BERT)))
    save(model, tmp_path / "a")
    with pytest.raises(UsageError, match="give the module to fill"):
        load(tmp_path / "a")
    loaded = load(tmp_path / "a", model=Custom(BertConfig(**BERT)))
    assert torch.equal(first_output(loaded), first_output(model))


def test_checkpoints_whose_weight_norm_was_folded_load(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    convolutions = {"conv_dim": [8, 8], "conv_stride": [4, 2], "conv_kernel": [8, 3]}
    config = HubertConfig(intermediate_size=48, **sizes, **convolutions)
    torch.manual_seed(0)
    model = HubertModel(config).eval()
    wave = torch.randn(2, 400)
    with torch.inference_mode():
        expected = model(wave).last_hidden_state
    model.save_pretrained(tmp_path / "dense")
    loaded, source = load_pretrained(tmp_path / "dense")
    report = se.prune(loaded, 0.0)  # folds weight norm
    save_checkpoint(loaded, tmp_path / "folded", source, report.to_dict())
    again, _ = load_pretrained(tmp_path / "folded")
    with torch.inference_mode():
        torch.testing.assert_close(again(wave).last_hidden_state, expected, rtol=0, atol=1e-6)


def test_bounds_that_are_none(tmp_path: Path) -> None:
    """transformers writes an infinite number as {"__float__": "Infinity"}."""
    config = Mamba2Config(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4, num_heads=4, head_dim=8
    )
    Mamba2ForCausalLM(config).save_pretrained(tmp_path / "dense")
    assert "__float__" in (tmp_path / "dense" / "config.json").read_text()
    model, _ = load_pretrained(tmp_path / "dense")
    assert model.config.time_step_limit[1] == float("inf")
