"""Attention heads and feed-forward units of the model families."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UnsupportedModelError, UsageError
from sparse_engine.models import (
    AttentionNames,
    FeedForwardNames,
    LayerStack,
    find_family,
)
from sparse_engine.modules.linears import is_linear, weight_of
from sparse_engine.modules.names import join
from sparse_engine.structures.site import Site, Size

# Attributes of attention modules of transformers, and what they count.
HEADS = ("num_attention_heads", "num_heads", "n_heads")
KEY_VALUE_HEADS = ("num_key_value_heads",)
FEATURES = ("all_head_size", "split_size", "inner_dim")


def sites(model: nn.Module) -> Iterator[Site]:
    """The sites of all models of known families in `model`, itself or below it.

    Where a family cannot describe the layers of a model, or one of them is not a linear layer any
    more, the sites have a refusal.
    """
    found: set[str] = set()
    for prefix, module in model.named_modules():
        family = find_family(module)
        if family is None:
            continue
        try:
            for stack in family.stacks(module):
                layers = tuple(join(prefix, layer) for layer in stack.layers)
                if layers[0] not in found:
                    found.update(layers)
                    yield from list(stack_sites(model, replace(stack, layers=layers)))
        except (UnsupportedModelError, UsageError) as error:
            name = prefix or type(module).__name__
            for kind in ("head", "unit"):
                yield Site(name, kind, 0, {}, {}, refusal=f"{name}: {error}")


def stack_sites(model: nn.Module, stack: LayerStack) -> Iterator[Site]:
    """The sites of one stack.

    Args:
        model: the module in which the names of `stack.layers` are.
        stack: its layers.
    """
    names = stack.names
    if stack.fixed_heads:
        reason = f"{stack.name}: heads are counted by the config, cut units only"
        yield Site(stack.name, "head", 0, {}, {}, refusal=reason)
        for layer in stack.layers:
            yield feed_forward_site(model, layer, names.feed_forward)
        return
    sizes = [geometry.head_size for geometry in stack.geometry]
    attentions = [
        attention_site(model, layer, names.attention, geometry.head_size, geometry.group)
        for layer, geometry in zip(stack.layers, stack.geometry, strict=True)
    ]
    if stack.bias_table is not None:
        yield _with_one_bias(model, stack, attentions)
    for attention, layer, size in zip(attentions, stack.layers, sizes, strict=True):
        if stack.bias_table is None:
            yield attention
        if names.cross_attention is not None:
            cross = attention_site(model, layer, names.cross_attention, size)
            even = "" if stack.bias_table is None else f"{stack.name} {names.cross_attention.query}"
            yield replace(cross, even=even)
        yield feed_forward_site(model, layer, names.feed_forward)


def attention_site(
    model: nn.Module, layer: str, names: AttentionNames, head_size: int, group: int = 1
) -> Site:
    """The heads of one attention; with shared keys and values, a group is all heads that share.

    Args:
        model: the whole model.
        layer: dotted name of the layer.
        names: of its attention.
        head_size: features of a head.
        group: query heads that read one key head, where one layer computes both.
    """
    query, output = f"{layer}.{names.query}", f"{layer}.{names.output}"
    width = _weight(model, output).shape[1]
    heads = width // head_size
    if names.key is None or names.value is None:  # one layer computes all three
        shared = heads // group
        of_shared = torch.arange(shared).repeat_interleave(head_size)
        if names.interleaved:
            rows = of_shared.view(shared, head_size).repeat(1, group + 2).flatten()
        else:
            rows = torch.cat([_of_heads(heads, shared, head_size), of_shared, of_shared])
        writers = {query: rows}
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
    if names.fused_gate:
        writers = {f"{layer}.{names.up}": units.repeat(2)}
    return Site(f"{layer}.{names.up}", "unit", len(units), writers, {down: units})


def _with_one_bias(model: nn.Module, stack: LayerStack, attentions: Sequence[Site]) -> Site:
    """One site of the heads of all layers: each adds a column of one table to its scores."""
    heads = attentions[0].groups
    return Site(
        stack.name,
        "head",
        heads,
        writers={name: of for site in attentions for name, of in site.writers.items()},
        readers={name: of for site in attentions for name, of in site.readers.items()},
        between={join(stack.name, stack.bias_table or ""): torch.arange(heads)},
        sizes=(
            *(size for site in attentions for size in site.sizes),
            *_sizes(model, stack.name, heads, heads, stack.geometry[0].head_size),
        ),
        layers=len(attentions),
    )


def _of_heads(heads: int, groups: int, head_size: int) -> Tensor:
    """The group of each feature of queries."""
    return torch.arange(groups).repeat_interleave(heads // groups * head_size)


def _weight(model: nn.Module, name: str) -> Tensor:
    module = model.get_submodule(name)
    if not is_linear(module):
        kind = type(module)
        sparse = kind.__module__.startswith("sparse_engine.")
        fix = ": densify_ the model first" if sparse else ""
        raise UsageError(f"{name} is a {kind.__name__}, not a linear layer{fix}")
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
