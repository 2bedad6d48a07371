"""Attention heads and feed-forward units of the model families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.models import (
    AttentionNames,
    FeedForwardNames,
    LayerStack,
    find_family,
)
from sparse_engine.modules.linears import is_linear, weight_of
from sparse_engine.structures.site import Site, Size

# Attributes of attention modules of transformers, and what they count.
HEADS = ("num_attention_heads", "num_heads", "n_heads")
KEY_VALUE_HEADS = ("num_key_value_heads",)
FEATURES = ("all_head_size", "split_size", "inner_dim")


def sites(model: nn.Module) -> Iterator[Site]:
    """The sites of all models of known families in `model`, itself or below it.

    Raises:
        UnsupportedModelError: if a family cannot describe the layers of such a model.
    """
    found: set[str] = set()
    for prefix, module in model.named_modules():
        family = find_family(module)
        if family is None:
            continue
        dot = f"{prefix}." if prefix else ""
        for stack in family.stacks(module):
            layers = tuple(f"{dot}{layer}" for layer in stack.layers)
            if layers[0] not in found:
                found.update(layers)
                yield from _of_stack(model, replace(stack, layers=layers))


def _of_stack(model: nn.Module, stack: LayerStack) -> Iterator[Site]:
    for layer, geometry in zip(stack.layers, stack.geometry, strict=True):
        for names in (stack.names.attention, stack.names.cross_attention):
            if names is not None:
                yield attention_site(model, layer, names, geometry.head_size)
        yield feed_forward_site(model, layer, stack.names.feed_forward)


def attention_site(model: nn.Module, layer: str, names: AttentionNames, head_size: int) -> Site:
    """The heads of one attention; with shared keys and values, a group is all heads that share.

    Args:
        model: the whole model.
        layer: dotted name of the layer.
        names: of its attention.
        head_size: features of a head.
    """
    query, output = f"{layer}.{names.query}", f"{layer}.{names.output}"
    width = _weight(model, output).shape[1]
    heads = width // head_size
    if names.key is None or names.value is None:  # queries, keys and values, one after another
        shared = heads
        of_head = torch.arange(heads).repeat_interleave(head_size)
        writers = {query: of_head.repeat(3)}
    else:
        key, value = f"{layer}.{names.key}", f"{layer}.{names.value}"
        shared = _weight(model, key).shape[0] // head_size
        of_shared = torch.arange(shared).repeat_interleave(head_size)
        writers = {query: _of_heads(heads, shared, head_size), key: of_shared, value: of_shared}
    module = query.rpartition(".")[0]
    return Site(
        module,
        "head",
        shared,
        writers,
        {output: _of_heads(heads, shared, head_size)},
        sizes=tuple(_sizes(model, module, heads, shared, head_size)),
    )


def feed_forward_site(model: nn.Module, layer: str, names: FeedForwardNames) -> Site:
    """The hidden units of one feed-forward."""
    down = f"{layer}.{names.down}"
    units = torch.arange(_weight(model, down).shape[1])
    writers = {f"{layer}.{name}": units for name in (names.up, names.gate) if name is not None}
    return Site(f"{layer}.{names.up}", "unit", len(units), writers, {down: units})


def _of_heads(heads: int, groups: int, head_size: int) -> Tensor:
    """The group of each feature of queries."""
    return torch.arange(groups).repeat_interleave(heads // groups * head_size)


def _weight(model: nn.Module, name: str) -> Tensor:
    module = model.get_submodule(name)
    assert is_linear(module)
    return weight_of(module)


def _sizes(model: nn.Module, name: str, heads: int, groups: int, head_size: int) -> Iterator[Size]:
    """The attributes of an attention module that have the expected value."""
    module: Any = model.get_submodule(name)
    share = heads // groups
    for attributes, per_group in (
        (HEADS, share),
        (KEY_VALUE_HEADS, 1),
        (FEATURES, share * head_size),
    ):
        for attribute in attributes:
            if getattr(module, attribute, None) == per_group * groups:
                yield Size(name, attribute, per_group)
