"""Models of transformers, tiny and random, as pruning meets them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

IDS = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = {**VISION, "max_position_embeddings": 64, **IDS}
IMAGE = {**VISION, "image_size": 16, "patch_size": 8}
MOE = {**TEXT, "num_key_value_heads": 2, "num_experts_per_tok": 2}
TWO = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 1,
    **IDS,
}
T5 = {
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    **IDS,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", TEXT),
    "roberta": ("RobertaForMaskedLM", TEXT),
    "electra": ("ElectraForTokenClassification", {**TEXT, "embedding_size": 16}),
    "albert": ("AlbertForMaskedLM", {**TEXT, "embedding_size": 16}),
    "deberta-v2": ("DebertaV2Model", {**TEXT, "relative_attention": True, "pos_att_type": ["p2c"]}),
    "modernbert": ("ModernBertForMaskedLM", TEXT),
    "squeezebert": ("SqueezeBertModel", {**TEXT, "embedding_size": 32}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 2, **IDS}),
    "gpt_neox": ("GPTNeoXForCausalLM", TEXT),
    "opt": ("OPTForCausalLM", {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 2, **IDS}),
    "falcon": ("FalconForCausalLM", TEXT),
    "phi": ("PhiForCausalLM", TEXT),
    "mamba": ("MambaModel", {"hidden_size": 32, "num_hidden_layers": 2, **IDS}),
    "mixtral": ("MixtralForCausalLM", {**MOE, "num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {**MOE, "num_experts": 4, "moe_intermediate_size": 16, "head_dim": 16},
    ),
    "gpt_oss": ("GptOssForCausalLM", {**MOE, "num_local_experts": 4, "head_dim": 16}),
    "t5": ("T5ForConditionalGeneration", T5),
    "bart": ("BartForConditionalGeneration", TWO),
    "marian": ("MarianMTModel", TWO),
    "whisper": (
        "WhisperForConditionalGeneration",
        {**TWO, "num_mel_bins": 8, "max_source_positions": 32, "max_target_positions": 32},
    ),
    "clip": ("CLIPModel", {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 16}),
    "vit": ("ViTForImageClassification", IMAGE),
    "wav2vec2": (
        "Wav2Vec2Model",
        {**TEXT, "conv_dim": [16], "conv_kernel": [5], "conv_stride": [2]},
    ),
}


def of(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    name, config = ARCHITECTURES[architecture]
    model: nn.Module = getattr(transformers, name)(
        transformers.CONFIG_MAPPING[architecture](**config)
    )
    return model
