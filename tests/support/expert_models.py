"""Tiny experts of each layout of transformers, with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

EXPERTS, HIDDEN, INNER = 5, 24, 16


def experts(kind: str) -> nn.Module:
    """Fused experts: 5 of them, 24 wide, 16 inside; `kind` names the model."""
    pytest.importorskip("transformers")
    import transformers as t
    from transformers.models.aria.modeling_aria import AriaExperts
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    sizes: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": INNER}
    routed = {"moe_intermediate_size": INNER, "num_experts": EXPERTS}
    made = {
        "mixtral": lambda: MixtralExperts(t.MixtralConfig(**sizes, num_local_experts=EXPERTS)),
        "qwen3": lambda: Qwen3MoeExperts(t.Qwen3MoeConfig(**sizes, **routed)),
        "gpt_oss": lambda: GptOssExperts(t.GptOssConfig(**sizes, num_local_experts=EXPERTS)),
        "aria": lambda: AriaExperts(
            t.AriaTextConfig(**sizes, num_attention_heads=4, moe_num_experts=EXPERTS)
        ),
        "clamped": lambda: DeepseekV4Experts(
            t.DeepseekV4Config(
                hidden_size=HIDDEN, moe_intermediate_size=INNER, n_routed_experts=EXPERTS
            )
        ),
        "no_gate": lambda: NemotronHExperts(
            t.NemotronHConfig(
                hidden_size=HIDDEN,
                moe_intermediate_size=INNER,
                n_routed_experts=EXPERTS,
                num_experts_per_tok=2,
            )
        ),
    }[kind]()
    made.config._experts_implementation = "eager"
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.4)
    return made.eval()


def routed(tokens: int = 9, k: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, chosen experts and their weights; expert 4 is never chosen."""
    index = torch.stack([torch.randperm(EXPERTS - 1)[:k] for _ in range(tokens)])
    return torch.randn(tokens, HIDDEN), index, torch.rand(tokens, k)


KINDS = ("mixtral", "qwen3", "gpt_oss", "aria", "clamped", "no_gate")
