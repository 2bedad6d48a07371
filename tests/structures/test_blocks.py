"""Blocks taken out of models: against models that are built with fewer blocks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.io import load_pretrained, save_checkpoint, verify
from sparse_engine.modules.linears import is_linear
from sparse_engine.structures import check_removable, find_stacks, remove_blocks_

WIDE = {"vocab_size": 50, "pad_token_id": 0}
BERT = WIDE | {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
LLAMA = BERT | {"num_key_value_heads": 1, "head_dim": 8}
BART = WIDE | {
    "d_model": 16,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 2,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
}
T5 = WIDE | {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
KINDS = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
QWEN = LLAMA | {"use_sliding_window": True, "sliding_window": 4, "layer_types": KINDS}
GEMMA = LLAMA | {"sliding_window": 4, "layer_types": KINDS, "head_dim": 8}
OPT = BERT | {"ffn_dim": 24, "word_embed_proj_dim": 16}
# Model class, config class, options, and the options that count blocks.
ENCODERS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    name: (f"{prefix}Model", f"{prefix}Config", BERT, ("num_hidden_layers",))
    for name, prefix in (
        ("bert", "Bert"),
        ("roberta", "Roberta"),
        ("xlm-roberta", "XLMRoberta"),
        ("camembert", "Camembert"),
        ("electra", "Electra"),
        ("mpnet", "MPNet"),
    )
}
ENCODERS["distilbert"] = (
    "DistilBertModel",
    "DistilBertConfig",
    WIDE | {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24},
    ("n_layers",),
)
ENCODERS["eurobert"] = ("EuroBertModel", "EuroBertConfig", LLAMA, ("num_hidden_layers",))
ENCODERS["nomic-bert"] = ("NomicBertModel", "NomicBertConfig", BERT, ("num_hidden_layers",))
DECODERS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        WIDE | {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32},
        ("n_layer",),
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA, ("num_hidden_layers",)),
    "mistral": ("MistralForCausalLM", "MistralConfig", LLAMA, ("num_hidden_layers",)),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", QWEN, ("num_hidden_layers",)),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", QWEN, ("num_hidden_layers",)),
    "granite": ("GraniteForCausalLM", "GraniteConfig", LLAMA, ("num_hidden_layers",)),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", LLAMA, ("num_hidden_layers",)),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GEMMA, ("num_hidden_layers",)),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", BERT, ("num_hidden_layers",)),
    "phi": ("PhiForCausalLM", "PhiConfig", BERT, ("num_hidden_layers",)),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", LLAMA, ("num_hidden_layers",)),
    "opt": ("OPTForCausalLM", "OPTConfig", OPT, ("num_hidden_layers",)),
}
TRANSLATORS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5,
        ("num_layers", "num_decoder_layers"),
    ),
    "mt5": (
        "MT5ForConditionalGeneration",
        "MT5Config",
        T5,
        ("num_layers", "num_decoder_layers"),
    ),
    **{
        name: (cls, config, BART, ("encoder_layers", "decoder_layers"))
        for name, cls, config in (
            ("marian", "MarianMTModel", "MarianConfig"),
            ("bart", "BartForConditionalGeneration", "BartConfig"),
            ("mbart", "MBartForConditionalGeneration", "MBartConfig"),
            ("pegasus", "PegasusForConditionalGeneration", "PegasusConfig"),
            ("m2m_100", "M2M100ForConditionalGeneration", "M2M100Config"),
        )
    },
}
FAMILIES = {"qwen3": "llama"}
MODELS = ENCODERS | DECODERS | TRANSLATORS
KEPT = {"first goes": (1, 3), "last goes": (0, 1), "one is left": (2,)}


def built(name: str, blocks: int | None = None, kept: tuple[int, ...] = ()) -> Any:
    """A tiny random model; with `blocks` that many in every stack."""
    cls, config, options, counts = MODELS[name]
    if blocks is not None:
        options = options | dict.fromkeys(counts, blocks)
        if "layer_types" in options:
            options["layer_types"] = [KINDS[i] for i in kept]
    torch.manual_seed(0)
    model = getattr(transformers, cls)(getattr(transformers, config)(**options))
    for key, p in model.named_parameters():
        if "embed_positions" not in key:  # sinusoids are not stored
            p.data += 0.1 * torch.randn(p.shape)  # norms and biases are not ones and zeros
    return model.eval()


def reference(name: str, kept: tuple[int, ...]) -> Any:
    """A model that is built with fewer blocks, with the weights of those that are kept."""
    dense, model = built(name), built(name, len(kept), kept)
    weights = dense.state_dict()
    for stack in find_stacks(dense):
        prefix = f"{stack.name}."
        shared = {key: value for key, value in weights.items() if "relative_attention_bias" in key}
        own = {key: weights.pop(key) for key in list(weights) if key.startswith(prefix)}
        for new, old in enumerate(kept):
            for key, value in own.items():
                number, _, rest = key.removeprefix(prefix).partition(".")
                if int(number) == old:
                    weights[f"{prefix}{new}.{rest}"] = value
        weights |= {key: value for key, value in shared.items() if key.startswith(prefix)}
    model.load_state_dict(weights)
    return model


def inputs(name: str) -> dict[str, Any]:
    ids = torch.randint(3, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    return given | ({"decoder_input_ids": ids.flip(1)} if name in TRANSLATORS else {})


def outputs(model: Any, name: str) -> list[torch.Tensor]:
    with torch.inference_mode():
        found = model(**inputs(name), output_hidden_states=True)
    states = found.get("hidden_states") or found.decoder_hidden_states
    return [found[0], *states]


def shortened(name: str, kept: tuple[int, ...]) -> Any:
    model = built(name)
    stacks = find_stacks(model)
    check_removable(model, stacks)
    remove_blocks_(model, dict.fromkeys((s.name for s in stacks), kept), stacks)
    return model


def attributes(model: nn.Module) -> dict[str, Any]:
    """The public plain attributes of all modules, without the path of a file."""
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
        if isinstance(value, bool | int | float | str)
        and not key.startswith("_")
        and key != "name_or_path"
    }


def assert_same(model: Any, wanted: Any, name: str) -> None:
    assert attributes(model) == attributes(wanted)
    state, other = model.state_dict(), wanted.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(state[key], other[key]) for key in state)
    for found, expected in zip(outputs(model, name), outputs(wanted, name), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("name", MODELS)
def test_equals_a_model_built_with_fewer_blocks(name: str, kept: tuple[int, ...]) -> None:
    assert_same(shortened(name, kept), reference(name, kept), name)


@pytest.mark.parametrize("name", [*DECODERS, *TRANSLATORS])
def test_generates_with_a_cache(name: str) -> None:
    kept = (1, 3)
    model, wanted = shortened(name, kept), reference(name, kept)
    given = {key: inputs(name)[key] for key in ("input_ids", "attention_mask")}
    given["attention_mask"] = torch.ones_like(given["attention_mask"])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    found = model.generate(**given, **options, use_cache=True)
    assert torch.equal(found, wanted.generate(**given, **options, use_cache=True))
    assert torch.equal(found, model.generate(**given, **options, use_cache=False))


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "qwen3", "t5", "marian"])
def test_is_a_plain_model(name: str, tmp_path: Path) -> None:
    """transformers writes and reads it, and it can be copied."""
    model = shortened(name, (1, 3))
    assert_same(copy.deepcopy(model), model, name)
    model.save_pretrained(tmp_path)
    assert_same(type(model).from_pretrained(tmp_path).eval(), model, name)


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "qwen3", "t5", "marian"])
def test_checkpoints_and_packages(name: str, tmp_path: Path) -> None:
    """They are written beside the config of the model as it was, and loaded without help."""
    built(name).save_pretrained(tmp_path / "dense")
    model = shortened(name, (1, 3))
    save_checkpoint(model, tmp_path / "cut", tmp_path / "dense", {})
    loaded, _ = load_pretrained(tmp_path / "cut")
    assert_same(loaded.eval(), model, name)
    se.prune(model, 0.5)
    se.sparsify_(model, "csr")
    se.save(model, tmp_path / "package", source=tmp_path / "dense")
    verify(tmp_path / "package")
    with torch.inference_mode():
        found = se.load(tmp_path / "package")(**inputs(name))[0]
        assert torch.equal(found, model(**inputs(name))[0])


@pytest.mark.parametrize("name", ["bert", "distilbert", "mpnet", "gpt2", "llama", "qwen3", "t5"])
def test_runs_in_native_stacks(name: str) -> None:
    model = shortened(name, (1, 3))
    for module in model.modules():
        if is_linear(module):
            module.weight.data *= torch.rand(module.weight.shape) < 0.3
    expected = outputs(model, name)[0]
    report = se.sparsify_(model, "csr")
    assert f"2 {FAMILIES.get(name, name)} layers run natively" in report.native
    with torch.inference_mode():
        found = model(**inputs(name))[0]
    mask = inputs(name)["attention_mask"].bool()
    rows = slice(None) if name in TRANSLATORS else mask
    torch.testing.assert_close(found[rows], expected[rows], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm_first", [False, True])
def test_stacks_of_torch(norm_first: bool) -> None:
    torch.manual_seed(0)
    model = nn.Transformer(16, 2, 3, 4, 24, batch_first=True, norm_first=norm_first).eval()
    wanted = copy.deepcopy(model)
    wanted.encoder.layers = wanted.encoder.layers[1:]
    wanted.decoder.layers = nn.ModuleList(wanted.decoder.layers[i] for i in (0, 3))
    stacks = find_stacks(model)
    assert [(stack.name, len(stack.blocks)) for stack in stacks] == [
        ("encoder.layers", 3),
        ("decoder.layers", 4),
    ]
    remove_blocks_(model, {"encoder.layers": (1, 2), "decoder.layers": (0, 3)}, stacks)
    assert (model.encoder.num_layers, model.decoder.num_layers) == (2, 2)
    x, y = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    assert torch.equal(model(x, y), wanted(x, y))


def test_after_an_error_nothing_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("t5")
    before, config = outputs(model, "t5"), model.config.to_dict()
    attention = model.decoder.block[3].layer[1].EncDecAttention
    cls = type(attention)

    def refusing(self: Any, key: str, value: Any) -> None:
        if key == "layer_idx" and value == 2 and self is attention:
            raise KeyboardInterrupt
        nn.Module.__setattr__(self, key, value)

    monkeypatch.setattr(cls, "__setattr__", refusing, raising=False)
    blocks = ["encoder.block.0", "decoder.block.0"]
    with pytest.raises(KeyboardInterrupt):
        se.prune(model, 0.25, "layer", "last", layers=blocks)
    assert model.config.to_dict() == config
    for found, expected in zip(outputs(model, "t5"), before, strict=True):
        assert torch.equal(found, expected)


def test_refusals() -> None:
    shared = built("bert")
    shared.encoder.layer[2] = shared.encoder.layer[0]
    with pytest.raises(UsageError, match=r"layer\.0 and encoder\.layer\.2 share"):
        check_removable(shared, find_stacks(shared))
    tied = built("bert")
    tied.pooler.dense.weight = tied.encoder.layer[0].attention.self.query.weight
    with pytest.raises(UsageError, match=r"pooler\.dense\.weight is also a weight"):
        check_removable(tied, find_stacks(tied))
    wrong = built("bert")
    wrong.config.num_hidden_layers = 9
    with pytest.raises(UsageError, match=r"has 4 layers, but config\.num_hidden_layers is 9"):
        find_stacks(wrong)
    numbered = built("gpt2")
    numbered.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(UsageError, match="depend on its number"):
        find_stacks(numbered)
    albert = transformers.AlbertModel(transformers.AlbertConfig(**BERT, embedding_size=8))
    assert find_stacks(albert) == []
