"""Tiny decoders of transformers with random weights, by kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 77,
    "vocab_size": 99,
    "max_position_embeddings": 200,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 50,
}
SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW = {"use_sliding_window": True, "sliding_window": 9}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4}
GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 2.0,
}
GEMMA2 = {
    "head_dim": 14,
    "query_pre_attn_scalar": 30,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 9.0,
    "sliding_window": 9,
}
GEMMA3 = {
    "head_dim": 14,
    "query_pre_attn_scalar": 30,
    "layer_types": [SLIDING, FULL, SLIDING],
    "sliding_window": 9,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, one key head": ("Llama", {"num_key_value_heads": 1, "attention_bias": True}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3, "mlp_bias": True, "head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, window": ("Mistral", {"sliding_window": 9}),
    "gpt2": ("GPT2", {}),
    "gpt2, no bias of scores": ("GPT2", {"scale_attn_weights": False, "n_inner": 50}),
    "qwen2": ("Qwen2", {}),
    "qwen2, alternating windows": ("Qwen2", {"layer_types": [SLIDING, FULL, SLIDING]} | WINDOW),
    "qwen2, last layers": ("Qwen2", {"max_window_layers": 1} | WINDOW),
    "qwen3": ("Qwen3", {"head_dim": 20}),
    "qwen3, one window": ("Qwen3", {"layer_types": [FULL, SLIDING, FULL]} | WINDOW),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "smollm3, windows": (
        "SmolLM3",
        {"no_rope_layers": [0, 1, 1], "layer_types": [SLIDING, FULL, SLIDING]} | WINDOW,
    ),
    "granite": ("Granite", GRANITE),
    "gemma": ("Gemma", {"head_dim": 14, "hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": ("Gemma2", GEMMA2),
    "gemma2, without caps": ("Gemma2", GEMMA2 | {"attn_logit_softcapping": None}),
    "gemma3": ("Gemma3Text", GEMMA3),
    "phi": ("Phi", {"num_key_value_heads": 6, "rope_parameters": PARTIAL}),
    "phi3": ("Phi3", {"sliding_window": 9}),
    "phi3, all keys": ("Phi3", {"num_key_value_heads": 6, "sliding_window": None}),
    "gpt-neox": ("GPTNeoX", {"rope_parameters": PARTIAL}),
    "gpt-neox, in turn": ("GPTNeoX", {"use_parallel_residual": False, "attention_bias": False}),
    "opt": ("OPT", {"ffn_dim": 77, "word_embed_proj_dim": 60}),
    "opt, norms after": (
        "OPT",
        {"ffn_dim": 77, "word_embed_proj_dim": 60, "do_layer_norm_before": False},
    ),
}


def hugging(kind: str, head: str = "ForCausalLM", **more: Any) -> Any:
    torch.manual_seed(0)
    name, sizes = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**(SMALL | sizes | more))
    name = name.removesuffix("Text")
    head = "LMHeadModel" if (name, head) == ("GPT2", "ForCausalLM") else head
    model = getattr(transformers, f"{name}{head}")(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():  # initial ones hide mistakes
        if parameter.dim() == 1:
            parameter.copy_(parameter + 0.3 * torch.randn_like(parameter))
        else:
            parameter.mul_(5)
            if "layers." in name or ".h." in f".{name}":
                parameter[torch.rand_like(parameter) < 0.6] = 0
    return model
