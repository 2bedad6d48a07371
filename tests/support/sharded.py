"""Tiny checkpoints in several shards, and calibration batches for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 60


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def bert() -> Any:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return BertModel(config)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes))


MODELS = {"llama": llama, "bert": bert, "gpt2": gpt2}


def save_sharded(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model of random weights, biases and norms in shards of at most 20 KB."""
    torch.manual_seed(0)
    model = MODELS[kind]()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def token_batches(count: int = 3) -> list[dict[str, Tensor]]:
    """Batches of different lengths, each with a padded text, which are not merged."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for i in range(count):
        shape = (4, 9 + i)
        mask = torch.ones(shape, dtype=torch.int64)
        mask[1, -2:] = 0
        ids = torch.randint(VOCABULARY, shape, generator=generator)
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of the shards of a folder."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found
