"""Small random models of every family of transformers, with inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

BERT = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
}
DISTILBERT = {
    "vocab_size": 60,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 6,
    "hidden_dim": 40,
    "max_position_embeddings": 40,
}
GPT2 = {"vocab_size": 60, "n_embd": 24, "n_layer": 2, "n_head": 6, "n_inner": 40, "n_positions": 40}
LLAMA = BERT | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6}
IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
T5 = IDS | {
    "vocab_size": 60,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 6,
    "relative_attention_max_distance": 20,
}
BART = IDS | {
    "vocab_size": 60,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 36,
    "max_position_embeddings": 40,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
}
# Class of the model, and its sizes and options.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", BERT),
    "bert for labels": ("BertForSequenceClassification", BERT),
    "roberta": ("RobertaModel", BERT),
    "xlm-roberta": ("XLMRobertaModel", BERT),
    "camembert": ("CamembertModel", BERT),
    "electra": ("ElectraModel", BERT | {"embedding_size": 16}),
    "distilbert": ("DistilBertModel", DISTILBERT),
    "mpnet": ("MPNetModel", BERT),
    "modernbert": ("ModernBertModel", BERT | {"pad_token_id": 0, "local_attention": 6}),
    "eurobert": ("EuroBertModel", LLAMA | {"pad_token_id": 0}),
    "nomic-bert": ("NomicBertModel", BERT | {"pad_token_id": 0}),
    "gpt2": ("GPT2LMHeadModel", GPT2 | NO_IDS),
    "llama": ("LlamaForCausalLM", LLAMA | NO_IDS),
    "llama, biases": ("LlamaForCausalLM", LLAMA | NO_IDS | {"attention_bias": True}),
    "llama, one key": ("LlamaForCausalLM", LLAMA | NO_IDS | {"num_key_value_heads": 8}),
    "mistral": ("MistralForCausalLM", LLAMA | NO_IDS | {"sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA | NO_IDS),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | NO_IDS),
    "smollm3": ("SmolLM3ForCausalLM", LLAMA | NO_IDS | {"no_rope_layers": [1, 0]}),
    "granite": ("GraniteForCausalLM", LLAMA | NO_IDS | {"residual_multiplier": 0.5}),
    "gemma": ("GemmaForCausalLM", LLAMA | NO_IDS),
    "gemma2": ("Gemma2ForCausalLM", LLAMA | NO_IDS | {"sliding_window": 4}),
    "gemma3": ("Gemma3ForCausalLM", LLAMA | NO_IDS | {"sliding_window": 4}),
    "phi": ("PhiForCausalLM", BERT | NO_IDS),
    "gpt-neox": ("GPTNeoXForCausalLM", BERT | NO_IDS),
    "gpt-neox, in turn": (
        "GPTNeoXForCausalLM",
        BERT | NO_IDS | {"use_parallel_residual": False},
    ),
    "opt": ("OPTForCausalLM", BERT | NO_IDS | {"ffn_dim": 40, "word_embed_proj_dim": 24}),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5 1.1": (
        "T5ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5 encoder": ("T5EncoderModel", T5),
    "marian": ("MarianMTModel", BART | {"scale_embedding": True}),
    "bart": ("BartForConditionalGeneration", BART | {"scale_embedding": True}),
    "mbart": ("MBartForConditionalGeneration", BART),
    "pegasus": ("PegasusForConditionalGeneration", BART | {"scale_embedding": True}),
}
DECODERS = (
    "gpt2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "granite",
    "gemma",
    "gemma2",
    "gemma3",
    "phi",
    "gpt-neox",
    "opt",
)
SEQ2SEQ = ("t5", "t5 1.1", "marian", "bart", "mbart", "pegasus")


def config_of(name: str) -> Any:
    kind, options = MODELS[name]
    stem = kind.partition("For")[0].removesuffix("Model")
    for end in ("LMHead", "MT", "Encoder"):
        stem = stem.removesuffix(end)
    stem = {"Gemma3": "Gemma3Text"}.get(stem, stem)
    return getattr(transformers, f"{stem}Config")(**options)


def model_of(name: str) -> Any:
    """The model in evaluation mode, with weights large enough that every head matters."""
    torch.manual_seed(0)
    model = getattr(transformers, MODELS[name][0])(config_of(name)).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "embed_positions" in path:
                continue
            if parameter.dim() == 1:  # initial biases and norms hide mistakes
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                size = (0.6 + 0.8 * torch.rand(())) * parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn_like(parameter) * size)
    return model


def widened(model: Any) -> Any:
    """The model in float64, in place.

    Where transformers computes attention without a kernel of torch, its softmax is in float32. A
    mask in float64 is infinite there, and rows of padding would be NaN: such models stay as they
    are.
    """
    return model if model.config._attn_implementation == "eager" else model.double()


def inputs_of(name: str, batch: int = 3, padding: str = "right") -> dict[str, Tensor]:
    """Ids and a mask; for models with a decoder also its ids."""
    source = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 60, (batch, 9), generator=source)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        hidden = slice(9 - 3 * row, None) if padding == "right" else slice(None, 3 * row)
        mask[row, hidden] = 0
    if padding == "none":
        mask[:] = 1
    ids[mask == 0] = 1 if "oberta" in name or "camembert" in name else 0
    given = {"input_ids": ids, "attention_mask": mask}
    if name in SEQ2SEQ:
        given["decoder_input_ids"] = torch.randint(2, 60, (batch, 7), generator=source)
    return given


def output_of(model: Any, given: dict[str, Tensor], **options: Any) -> Tensor:
    """Hidden states or logits, zeros where the input is padded."""
    y = model(**given, **options)
    states: Tensor = y.last_hidden_state if hasattr(y, "last_hidden_state") else y.logits
    if states.dim() == 3 and "decoder_input_ids" not in given:
        states = states * given["attention_mask"][..., None]
    return states
