"""Adjacent layers of Transformers, which are found by name, against derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from links import check, names
from pruning_models import ARCHITECTURES, of

from sparse_engine.pruning.unrolled import unrolled

IDS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
INPUTS: dict[str, dict[str, Any]] = {
    "vit": {"pixel_values": IMAGES},
    "clip": {"input_ids": IDS, "pixel_values": IMAGES},
    "wav2vec2": {"input_values": IMAGES.flatten(1)},
    "whisper": {"input_features": IMAGES.flatten(1)[:, : 8 * 64].view(2, 8, 64)},
}
# Per architecture: pairs of names below a layer, each in every layer of the model.
FFN = "intermediate.dense > output.dense"
VALUE = "attention.self.value > attention.output.dense"
EXPERTS = "mlp.experts.gate_up_proj.{e} > mlp.experts.down_proj.{e}"
LLAMA = "self_attn.v_proj > self_attn.o_proj"
BART = "self_attn.v_proj > self_attn.out_proj"
EXPECTED: dict[str, set[str]] = {
    "bert": {FFN, VALUE},
    "roberta": {FFN, VALUE},
    "electra": {FFN, VALUE},
    "deberta-v2": {FFN, "attention.self.value_proj > attention.output.dense"},
    "modernbert": {"mlp.Wi > mlp.Wo"},
    "gpt2": {"mlp.c_fc > mlp.c_proj"},
    "gpt_neox": {"mlp.dense_h_to_4h > mlp.dense_4h_to_h"},
    "bloom": {"mlp.dense_h_to_4h > mlp.dense_4h_to_h"},
    "falcon": {"mlp.dense_h_to_4h > mlp.dense_4h_to_h"},
    "opt": {"fc1 > fc2", BART},
    "phi": {"mlp.fc1 > mlp.fc2", "self_attn.v_proj > self_attn.dense"},
    "mixtral": {EXPERTS, LLAMA},
    "qwen3_moe": {EXPERTS, LLAMA},
    "gpt_oss": {EXPERTS, LLAMA},
    "bart": {"fc1 > fc2", BART, "encoder_attn.v_proj > encoder_attn.out_proj"},
    "t5": {"layer.1.DenseReluDense.wi > layer.1.DenseReluDense.wo"},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_links_carry_single_units(architecture: str) -> None:
    model = of(architecture).eval()
    inputs = INPUTS.get(architecture, {"input_ids": IDS})
    if getattr(model.config, "is_encoder_decoder", False):
        inputs = {**inputs, "decoder_input_ids": IDS[:, :4]}
    with unrolled(model):
        found = names(check(model, lambda: model(**inputs)))
    for pair in EXPECTED.get(architecture, set()):
        above, below = pair.replace("{e}", "0").split(" > ")
        matching = [
            link
            for link in found
            if link.split(" > ")[0].endswith(above) and link.split(" > ")[1].endswith(below)
        ]
        assert len(matching) >= 2, (pair, found)
