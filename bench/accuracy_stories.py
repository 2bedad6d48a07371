"""Perplexity of stories260K, a real Llama of 260k parameters, on texts that it wrote itself.

The data folder holds models/stories260K/stories260K.bin (github.com/karpathy/llama2.c). The dense
model writes all texts with fixed seeds; those for calibration differ from those of the test. The
perplexity is the exponential of the mean negative log-likelihood of the tokens after the first.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_rows import Setting
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError

BOS = 1
LENGTH = 256  # tokens of a text
TEST_TEXTS, TEST_SEED = 256, 10_000
BATCH = 64


class Stories:
    """Perplexity on the dense model's own texts; its embedding, which is also its head, is kept.

    Args:
        data: folder of the data.
    """

    name = "stories"
    calibrations = ("own texts",)
    samples = 256
    columns = ("perplexity",)
    points = tuple(product(("element", "4x1"), (0.5, 0.7)))

    def __init__(self, data: Path) -> None:
        self.dense = read_model(data / "models" / "stories260K" / "stories260K.bin")
        self.test = write_texts(self.dense, TEST_TEXTS, TEST_SEED)

    def arguments(self, setting: Setting) -> dict[str, Any]:
        """Arguments of `prune`: texts of another seed as inputs of the model."""
        texts = write_texts(self.dense, setting.samples, setting.seed)
        return {"calibration": [{"input_ids": part} for part in texts.split(BATCH)]}

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Perplexity of a model in torch."""
        total = torch.zeros((), dtype=torch.float64)
        for part in self.test.split(BATCH):
            logits: Any = model(input_ids=part).logits[:, :-1]
            losses = nn.functional.cross_entropy(
                logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"
            )
            total += losses.double()
        tokens = self.test[:, 1:].numel()
        return {"perplexity": round(float((total / tokens).exp()), 3)}


@torch.inference_mode()
def write_texts(model: Any, texts: int, seed: int, length: int = LENGTH) -> Tensor:
    """Texts sampled from a model at temperature 1, int64 [texts, length], each starting with BOS.

    A model that ends a story goes on with the next one.
    """
    from transformers import DynamicCache

    from sparse_engine.models.rnn import CACHE

    source = torch.Generator().manual_seed(seed)
    ids = torch.full((texts, 1), BOS)
    cache = DynamicCache(config=model.config)
    while ids.shape[1] < length:
        logits = model(input_ids=ids[:, -1:], use_cache=True, **{CACHE: cache}).logits
        chances = logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=source)], 1)
    return ids


def read_model(path: Path) -> Any:
    """A model file of llama2.c (version 0, classifier shared) as a LlamaForCausalLM.

    Raises:
        InvalidFileError: if the file does not have the size that its header implies.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    raw = path.read_bytes()
    if len(raw) < 28:
        raise InvalidFileError(f"{path}: no header of seven integers")
    width, inner, layers, heads, kv_heads, words, positions = map(int, np.frombuffer(raw, "<i4", 7))
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    size = width // heads
    # The names are those of transformers; [layers, ...] holds one tensor a layer.
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (words, width),
        "input_layernorm": (layers, width),
        "self_attn.q_proj": (layers, heads * size, width),
        "self_attn.k_proj": (layers, kv_heads * size, width),
        "self_attn.v_proj": (layers, kv_heads * size, width),
        "self_attn.o_proj": (layers, width, heads * size),
        "post_attention_layernorm": (layers, width),
        "mlp.gate_proj": (layers, inner, width),
        "mlp.down_proj": (layers, width, inner),
        "mlp.up_proj": (layers, inner, width),
        "model.norm": (width,),
    }
    values = torch.from_numpy(np.frombuffer(raw, "<f4", offset=28).copy())
    rotary = 2 * positions * (size // 2)  # tables of cosines and sines, which are not read
    if len(values) != sum(map(np.prod, shapes.values())) + rotary:
        raise InvalidFileError(f"{path}: its header does not fit its size")
    state = {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        tensor, values = values[:count].view(shape), values[count:]
        if name.startswith("model."):
            state[f"{name}.weight"] = tensor
            continue
        for i, one in enumerate(tensor):
            if name.endswith(("q_proj", "k_proj")):
                one = _halves(one, size)
            state[f"model.layers.{i}.{name}.weight"] = one
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


def _halves(weight: Tensor, size: int) -> Tensor:
    """Rows in the order of transformers, which rotates the halves of a head against each other.

    llama2.c rotates neighbouring features.
    """
    pairs = weight.view(-1, size // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)
