"""Rotary positions and sliding windows, as configs of transformers describe them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.models import base

# Rotary positions whose angles depend on nothing but the position.
FIXED_ROTARY = ("default", "linear", "llama3", "yarn", "proportional")
FULL, SLIDING = "full_attention", "sliding_attention"


def rotary_tables(
    decoder: Any, positions: int, layer_type: str | None = None
) -> tuple[Tensor, Tensor]:
    """The model's own angles: cosines and sines, each [positions, rotated features / 2].

    Args:
        decoder: the module that has `rotary_emb`.
        positions: how many.
        layer_type: of the layers, where their angles differ.
    """
    kind = {} if layer_type is None else {"layer_type": layer_type}
    x, ids = torch.zeros(1, dtype=torch.float32), torch.arange(positions)[None]
    cosines, sines = decoder.rotary_emb(x, position_ids=ids, **kind)
    half = cosines.shape[-1] // 2
    return cosines[0, :, :half], sines[0, :, :half]


def rotary(model: nn.Module, first_layer: str) -> base.RotaryTables:
    """What makes the rotary table of all layers of the module that `first_layer` is in.

    Raises:
        UnsupportedModelError: for angles that depend on the length of the text.
    """
    _check_kind(getattr(_rotary_module(model, first_layer), "rope_type", "default"))
    return rotary_tables


def rotary_by_type(model: nn.Module, first_layer: str) -> dict[str, base.RotaryTables]:
    """The same for each type of layers, where their angles differ."""
    kinds = _rotary_module(model, first_layer).rope_type
    for kind in kinds.values():
        _check_kind(kind)
    return {layer_type: partial(rotary_tables, layer_type=layer_type) for layer_type in kinds}


def _rotary_module(model: nn.Module, first_layer: str) -> Any:
    stack = ".".join(first_layer.split(".")[:-2])
    return model.get_submodule(f"{stack}.rotary_emb" if stack else "rotary_emb")


def _check_kind(kind: str) -> None:
    if kind not in FIXED_ROTARY:
        raise UnsupportedModelError(f"rope_type {kind!r} is not native")


def layer_types(config: Any, layers: int) -> list[str]:
    """Whether each layer has full or sliding attention.

    Raises:
        UnsupportedModelError: for other types, or fewer than there are layers.
    """
    kinds = list(getattr(config, "layer_types", None) or [FULL] * layers)
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise UnsupportedModelError(f"layer_types {kind!s:.40} is not native")
    if len(kinds) < layers:
        raise UnsupportedModelError(f"layer_types has {len(kinds)} entries for {layers} layers")
    return kinds[:layers]


def window(config: Any) -> int:
    """The keys that a query of a sliding layer sees; 0 for all.

    Raises:
        UnsupportedModelError: for a window that is no number.
    """
    found = getattr(config, "sliding_window", None) or 0
    if type(found) is not int or found < 0:
        raise UnsupportedModelError(f"sliding_window {found!s:.40} is not native")
    # A longer one hides nothing: no key is ever that far away.
    return 0 if found >= config.max_position_embeddings else found


def windows(config: Any, layers: int) -> list[int]:
    """The window of each layer, by its type; 0 for all keys."""
    return [window(config) if kind == SLIDING else 0 for kind in layer_types(config, layers)]
