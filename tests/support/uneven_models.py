"""Tiny models of which heads and units are removed, in each layer another number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sparse_engine as se
from sparse_engine.structures import find_sites, resize_

VOCABULARY = 50
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"intermediate_size": 48, "max_position_embeddings": 40}
    return BertForMaskedLM(BertConfig(**SMALL, **sizes))


def distilbert() -> Any:
    from transformers import DistilBertConfig, DistilBertModel

    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    return DistilBertModel(
        DistilBertConfig(vocab_size=VOCABULARY, max_position_embeddings=40, **sizes)
    )


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 48}
    return LlamaForCausalLM(LlamaConfig(**SMALL | sizes, max_position_embeddings=40))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **ends))


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **sizes))


MODELS: dict[str, Callable[[], Any]] = {
    "bert": bert,
    "distilbert": distilbert,
    "gpt2": gpt2,
    "llama": llama,
    "t5": t5,
}


def build(kind: str) -> Any:
    """A model with random weights, biases and norms, the same each time."""
    torch.manual_seed(0)
    model = MODELS[kind]().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def cut_(model: Any, even: bool = False) -> dict[str, int]:
    """Remove groups of all sites, in each site another number; returns what remains.

    Args:
        model: the model.
        even: leave half of the groups of every site.
    """
    source = torch.Generator().manual_seed(1)
    sites = find_sites(model, ("head", "unit"))
    counts: dict[str, int] = {}
    kept: dict[str, Tensor] = {}
    for site in sites:
        of = site.even or site.name
        count = max(int(torch.randint(1, site.groups + 1, (), generator=source)), 1)
        counts[of] = site.groups // 2 if even else counts.get(of, count)
        order = torch.randperm(site.groups, generator=source)
        kept[site.name] = order[: counts[of]].sort().values
    resize_(model, kept, sites)
    return {name: len(numbers) for name, numbers in kept.items()}


def inputs(model: Any) -> dict[str, Tensor]:
    """Two texts, one of them padded."""
    ids = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    decoder = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    return {"input_ids": ids, "attention_mask": mask, **decoder}


@torch.inference_mode()
def output(model: Any) -> Tensor:
    """The first output, without that of padding."""
    given = inputs(model)
    found: Tensor = model(**given)[0]
    return found if model.config.is_encoder_decoder else found[given["attention_mask"].bool()]


def sparse(model: Any, share: float = 0.7) -> Any:
    """The model with zeros, in sparse layers."""
    se.prune(model, share, "element", "magnitude")
    assert se.sparsify_(model, "csr").swapped
    return model
