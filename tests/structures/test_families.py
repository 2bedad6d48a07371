"""Heads and units of every family: cut models against models whose readers have zeros."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
import transformers
from family_models import (
    DECODERS,
    MODELS,
    SEQ2SEQ,
    config_of,
    inputs_of,
    model_of,
    output_of,
    widened,
)
from torch import Tensor, nn

import sparse_engine as se
from sparse_engine.errors import UsageError
from sparse_engine.nn.native.stack import native_stacks
from sparse_engine.structures import find_sites

STRUCTURES = ["head", "unit(keep=2)"]
# The layer that reads a site, by the end of the site's name.
READERS = {
    "attention.self": "attention.output.dense",
    "attention": "attention.out_lin",
    "Wi": "Wo",
    "dense_h_to_4h": "dense_4h_to_h",
    "attn": "attn.c_proj",
    "self_attn": "self_attn.o_proj",
    "EncDecAttention": "EncDecAttention.o",
    "encoder_attn": "encoder_attn.out_proj",
    "intermediate.dense": "output.dense",
    "lin1": "lin2",
    "c_fc": "c_proj",
    "up_proj": "down_proj",
    "wi": "wo",
    "wi_1": "wo",
    "fc1": "fc2",
}
ALL_LAYERS = {"SelfAttention.o", "attn.o"}  # of sites of a whole stack: T5 and MPNet


def readers(model: nn.Module, site: str) -> list[Any]:
    modules = dict(model.named_modules())
    if site.rpartition(".")[2] in ("encoder", "decoder"):
        ends = tuple(ALL_LAYERS)
        return [m for n, m in modules.items() if n.startswith(f"{site}.") and n.endswith(ends)]
    end = max((end for end in READERS if site.endswith(end)), key=len)
    stem = site.removesuffix(end)
    for other in ("attn.Wo", "self_attn.out_proj", "self_attn.dense", "attention.dense"):
        if other.startswith(f"{end}.") and stem + other in modules:
            return [modules[stem + other]]
    return [modules[stem + READERS[end]]]


def cut(model: Any, **options: Any) -> Any:
    """Remove 30 % of the heads and units of all layers, unevenly."""
    options = {"allocator": "raw", "criterion": "magnitude", **options}
    return se.prune(model, 0.3, STRUCTURES, **options)


@torch.no_grad()
def zero_(model: nn.Module, report: Any) -> nn.Module:
    """Zeros in the columns that read what a run has removed from `model`, by hand."""
    for site in report.sites:
        gone = [group for group in range(site.groups) if group not in site.kept]
        for reader in readers(model, site.name):
            weight = reader.weight if isinstance(reader, nn.Linear) else reader.weight.T
            weight.unflatten(1, (site.groups, -1))[:, gone] = 0
    return model


def check(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_cut_equals_zeros_in_the_layers_that_read(name: str) -> None:
    model = widened(model_of(name))
    reference, before = copy.deepcopy(model), sum(p.numel() for p in model.parameters())
    report = cut(model)
    zero_(reference, report)
    assert {site.kind for site in report.sites} == {"head", "unit"}
    assert len({len(site.kept) for site in report.sites if site.kind == "unit"}) > 1
    for batch, padding in ((3, "right"), (2, "left"), (1, "none")):
        given = inputs_of(name, batch, padding)
        check(output_of(model, given), output_of(reference, given))
    assert report.parameters == (before, sum(p.numel() for p in model.parameters()))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.Embedding):
            assert module.weight.shape == (module.num_embeddings, module.embedding_dim)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_kept_rows_and_counts(name: str) -> None:
    """Every removed group takes its rows and columns along, no more."""
    model = model_of(name)
    before = {path: parameter.clone() for path, parameter in model.named_parameters()}
    sites = {site.name: site for site in find_sites(model, ("head", "unit"))}
    report = cut(model)
    changed: dict[str, Tensor] = {}
    for found in report.sites:
        site = sites[found.name]
        for layer, groups in (*site.writers.items(), *site.between.items()):
            assert layer not in changed
            changed[layer] = torch.isin(groups, torch.tensor(found.kept))
    for path, parameter in model.named_parameters():
        layer, _, kind = path.rpartition(".")
        if layer in changed:
            module = model.get_submodule(layer)
            expected = before[path]
            transposed = kind == "weight" and not isinstance(module, nn.Linear)
            expected = expected.T[changed[layer]].T if transposed else expected[changed[layer]]
            assert torch.equal(parameter, expected)
    for found in report.sites:
        module = model.get_submodule(found.name)
        for attribute in ("num_attention_heads", "num_heads", "n_heads"):
            if found.kind == "head" and hasattr(module, attribute):
                assert getattr(module, attribute) == len(found.kept)


@pytest.mark.parametrize("name", MODELS)
def test_sites_of_a_model_without_weights(name: str) -> None:
    with torch.device("meta"):
        empty = type(model_of(name))(config_of(name))
    found, expected = (find_sites(m, ("head", "unit")) for m in (empty, model_of(name)))
    for site, other in zip(found, expected, strict=True):
        assert (site.name, site.sizes, site.even) == (other.name, other.sizes, other.even)
        for which in ("writers", "readers", "between"):
            ours, theirs = getattr(site, which), getattr(other, which)
            assert list(ours) == list(theirs)
            assert all(torch.equal(ours[layer], theirs[layer]) for layer in ours)


@pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ])
@torch.inference_mode()
def test_generate_equals_steps_without_a_cache(name: str) -> None:
    model = model_of(name)
    cut(model)
    given = inputs_of(name, 2, "left")
    given.pop("decoder_input_ids", None)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6}
    tokens = model.generate(**given, **options)
    if name in DECODERS:
        ids, mask = given["input_ids"], given["attention_mask"]
        while ids.shape[1] < tokens.shape[1]:
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        assert torch.equal(tokens, ids)
        return
    ids = tokens[:, :1]
    while ids.shape[1] < tokens.shape[1]:
        logits = model(**given, decoder_input_ids=ids, use_cache=False).logits[:, -1:]
        logits[..., 1] = -torch.inf  # no end before six tokens
        ids = torch.cat([ids, logits.argmax(-1)], 1)
    assert torch.equal(tokens, ids)


@pytest.mark.parametrize("name", MODELS)
def test_copies_states_and_fine_tuning(name: str) -> None:
    model = model_of(name)
    cut(model)
    given = inputs_of(name)
    expected = output_of(model, given).detach()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    copied.load_state_dict(model.state_dict())
    check(output_of(copied, given).detach(), expected)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    output_of(model, given).square().mean().backward()
    for path, parameter in model.named_parameters():
        if "pooler" not in path and "embed" not in path:
            assert parameter.grad is not None, path
    optimizer.step()
    model.eval()
    assert float((output_of(model, given) - expected).detach().abs().max()) > 1e-5
    check(output_of(copied, given).detach(), expected)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_native_stacks_of_uneven_layers(name: str, recwarn: pytest.WarningsRecorder) -> None:
    model = model_of(name)
    cut(model, allocator="lamp")
    first = find_sites(model, ("unit",))[0]
    se.prune(model, 0.5, "unit(keep=2)", layers=[*first.writers, *first.readers])
    given = inputs_of(name)
    se.prune(model, 0.6, "element", "magnitude")
    expected = output_of(widened(copy.deepcopy(model)), given, **uncached(name))
    dense = {path: tuple(tensor.shape) for path, tensor in model.state_dict().items()}
    report = se.sparsify_(model, "csr")
    assert "natively" in report.native, report.native
    native = native_stacks(model)
    assert len(native) == (2 if name in SEQ2SEQ else 1)
    check(output_of(model, given), expected, 1e-5)
    if name in (*DECODERS, *SEQ2SEQ):
        padded = inputs_of(name, 2, "left")
        source = {key: padded[key] for key in ("input_ids", "attention_mask")}
        options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
        tokens = model.generate(**source, **options)
    assert not [str(w.message) for w in recwarn if "one by one" in str(w.message)]
    se.densify_(model)
    assert {path: tuple(tensor.shape) for path, tensor in model.state_dict().items()} == dense
    check(output_of(model, given, **uncached(name)), expected, 1e-5)
    if name in (*DECODERS, *SEQ2SEQ):
        assert torch.equal(model.generate(**source, **options), tokens)


def uncached(name: str) -> dict[str, Any]:
    return {"use_cache": False} if name in (*DECODERS, *SEQ2SEQ) else {}


@pytest.mark.parametrize("name", ["t5", "mpnet", "llama", "bart"])
@torch.no_grad()
def test_readers_are_refitted(name: str) -> None:
    """Least squares brings the outputs nearer to those of the dense model."""
    model = model_of(name)
    given = inputs_of(name, 3, "none")
    expected = output_of(model, given)
    errors = {}
    for recovery in ("none", "least_squares"):
        copied = copy.deepcopy(model)
        cut(copied, criterion="obs", recovery=recovery, calibration=[given], allocator="uniform")
        errors[recovery] = float((output_of(copied, given) - expected).norm())
    assert errors["least_squares"] < errors["none"]


def unchanged(model: Any, message: str, kind: str = "head", **options: Any) -> None:
    """The run is refused with this message in one line, and the model stays as it is."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match=message) as caught:
        se.prune(model, 0.5, kind, **options)
    assert "\n" not in str(caught.value)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_models_without_known_heads_are_refused() -> None:
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 40}
    albert = transformers.AlbertConfig(**sizes, vocab_size=50, embedding_size=16)
    unchanged(transformers.AlbertModel(albert), "albert is no known family")
    decoder = transformers.BertConfig(**sizes, vocab_size=50, num_hidden_layers=1, is_decoder=True)
    unchanged(transformers.BertModel(decoder), "BertModel: is_decoder")
    sizes |= {"num_hidden_layers": 1, "num_key_value_heads": 2, "pad_token_id": 0}
    phi3 = transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes, vocab_size=50))
    unchanged(phi3, "model: heads are counted by the config, cut units only")
    config = config_of("gpt2")
    config.scale_attn_by_inverse_layer_idx = True
    unchanged(transformers.GPT2LMHeadModel(config), "GPT2LMHeadModel: scale_attn", "unit")


def test_models_whose_layers_are_not_plain_are_refused() -> None:
    model = model_of("bert")
    se.prune(model, 0.8)
    se.sparsify_(model, "csr")
    name = r"encoder\.layer\.0\.attention\.self\.query|encoder\.layer\.0\.attention\.output\.dense"
    with pytest.raises(UsageError, match=f"({name}) is a SparseLinear.*densify_"):
        se.prune(model, 0.5, "head")
    se.densify_(model)
    se.prune(model, 0.5, "head")
    quantised = torch.ao.quantization.quantize_dynamic(model_of("bert"), {nn.Linear}, torch.qint8)
    with pytest.raises(UsageError, match="quantised already"):
        se.prune(quantised, 0.5, "unit")
    shared = model_of("bert")
    shared.encoder.layer[1].attention.self.query = shared.encoder.layer[0].attention.self.query
    unchanged(shared, r"layer\.0\.attention\.self\.query and .*layer\.1.* share a weight")
    layer = model_of("llama")
    layer.model.layers[1] = layer.model.layers[0]
    unchanged(layer, r"model\.layers\.0\..* and model\.layers\.1\..* share a weight")


@torch.inference_mode()
def test_units_of_a_fused_gate() -> None:
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 40}
    sizes |= {"num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes, vocab_size=60)).eval()
    reference = copy.deepcopy(model)
    report = se.prune(model, 0.5, "unit", criterion="magnitude")
    for site in report.sites:
        down = reference.get_submodule(site.name.replace("gate_up_proj", "down_proj"))
        gone = [unit for unit in range(40) if unit not in site.kept]
        down.weight[:, gone] = 0
        assert tuple(model.get_submodule(site.name).weight.shape) == (40, 24)
    given = inputs_of("llama")
    check(output_of(model, given), output_of(reference, given))
    se.sparsify_(model, "csr")
    check(output_of(model, given), output_of(reference, given), 1e-5)


def test_sites_that_go_together_are_chosen_together() -> None:
    unchanged(model_of("t5"), "choose both", layers=["*EncDecAttention.o", "decoder.block.0.*"])
    unchanged(model_of("mpnet"), "among the chosen layers", layers=["encoder.layer.0"])


@pytest.mark.parametrize("sparsity", [0.2, 0.4, 0.6])
def test_heads_of_several_layers_compete_by_their_mean(sparsity: float) -> None:
    """The heads of T5 that share position biases: a stack counts as all of its layers."""
    torch.manual_seed(0)
    heads, width = 4, 8
    sizes = {"d_model": 32, "d_kv": width, "num_heads": heads, "d_ff": 48, "vocab_size": 50}
    model = transformers.T5Model(transformers.T5Config(num_layers=3, num_decoder_layers=2, **sizes))
    for parameter in model.parameters():
        parameter.data *= 0.5 + torch.rand(())
    encoder, decoder = (stack.block for stack in (model.encoder, model.decoder))
    attentions = [
        [block.layer[0].SelfAttention for block in encoder],
        [block.layer[0].SelfAttention for block in decoder],
        [block.layer[1].EncDecAttention for block in decoder],
    ]

    def costs(attention: Any) -> torch.Tensor:
        read = attention.o.weight.detach().double().square()
        return read.unflatten(1, (heads, width)).sum((0, 2))

    scores = [torch.stack([costs(attention) for attention in of]) for of in attentions]
    shared = [scores[0].mean(0).sort().values, scores[1].mean(0).sort().values]
    shared.append(scores[2].sort(1).values.mean(0))  # every cross attention loses heads of its own
    report = se.prune(model, sparsity, "head", "coupled(look='forward')", allocator="raw")
    counts = {site.name: heads - len(site.kept) for site in report.sites}
    gone = [counts.pop("encoder"), counts.pop("decoder"), *set(counts.values())]
    assert len(gone) == 3
    layers = [3, 2, 2]

    def summed(removed: Sequence[int]) -> float:
        parts = zip(layers, shared, removed, strict=True)
        return sum(size * float(own[:count].sum()) for size, own, count in parts)

    total = sum(n * size for n, size in zip(gone, layers, strict=True))
    assert abs(total - sparsity * heads * sum(layers)) <= 2
    rivals = [
        of
        for of in product(range(heads), repeat=3)
        if sum(n * size for n, size in zip(of, layers, strict=True)) == total
    ]
    assert summed(gone) == pytest.approx(min(map(summed, rivals)))
