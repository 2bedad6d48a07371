"""BART, mBART and Pegasus of Hugging Face transformers (Lewis et al. 2019, arXiv:1910.13461; Liu et
al. 2020, arXiv:2001.08210; Zhang et al. 2019, arXiv:1912.08777).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from sparse_engine.models import base, marian

# Rows of the learned positions in front of the first one.
OFFSET = 2


class Bart(base.Family):
    """The modules of Marian. mBART and Pegasus are pre-norm, with a norm after the last layer; BART
    and mBART have learned positions, and a norm of the embeddings.
    """

    name = "bart"

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        types = ("bart", "mbart", "pegasus")
        return base.model_type(model) in types and bool(base.layers_in(model, "encoder.layers"))

    def layers(self, model: nn.Module) -> list[str]:
        return marian.Marian().layers(model)

    def residuals(self, model: nn.Module) -> dict[str, base.Residual]:
        return marian.Marian().residuals(model)

    def stacks(self, model: nn.Module) -> tuple[base.LayerStack, ...]:
        kind = base.model_type(model)
        return tuple(_of_kind(stack, kind) for stack in marian.Marian().stacks(model))


def _of_kind(stack: base.LayerStack, kind: str) -> base.LayerStack:
    """What differs from Marian's stack."""
    changes: dict[str, Any] = {}
    if kind != "bart":
        names = stack.names
        changes |= {
            "names": base.LayerNames(
                _pre_norm(names.attention),
                _pre_norm(names.feed_forward),
                names.cross_attention and _pre_norm(names.cross_attention),
            ),
            "final_norm": "layer_norm",
        }
    if kind != "pegasus":  # the embeddings multiply by their factor themselves
        changes |= {
            "embedding_scale": 1.0,
            "position_offset": OFFSET,
            "embedding_norm": "layernorm_embedding",
        }
    return replace(stack, **changes)


def _pre_norm(names: Any) -> Any:
    """Names of an attention or a feed-forward whose norm is in front of it."""
    return replace(names, input_norm=names.sum_norm, sum_norm=None)
