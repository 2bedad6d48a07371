"""Relations between tokens: how much the queries, the keys and the values of a text are alike.

R_a = softmax(X_a X_a^T / sqrt(d)) over the tokens, for the part X_a [tokens, d] of each head, of
queries, of keys and of values. The distance is the mean of KL(dense R_a[t] || R_a[t]) over heads
and tokens. Attention maps themselves are computed inside of fused kernels, with masks, positions
and biases that differ between families; queries, keys and values are outputs of linear layers in
each of them. The models need neither the same width nor the same number of heads.

Wang et al. 2020, "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
Pre-Trained Transformers", arXiv:2002.10957; Wang et al. 2021, "MiniLMv2: Multi-Head Self-Attention
Relation Distillation for Compressing Pretrained Transformers", arXiv:2012.15828.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_engine.errors import UsageError
from sparse_engine.structures import find_sites
from sparse_engine.training.distillation.captured import Captured, Reader
from sparse_engine.training.distillation.distances import precise
from sparse_engine.training.distillation.pairs import paired


@dataclass(frozen=True)
class Projection:
    """A part of the output of a module: the queries, keys or values of an attention.

    Attributes:
        name: of the layer in the unrolled model, with a number if it is one of several parts.
        module: dotted name of the module that is called.
        head: features of a head.
        part: which part of the output, and how many there are.
        of_torch: the letter of the projection, for an nn.MultiheadAttention.
        batch_first: whether its output is [batch, tokens, features], not [tokens, batch, ...].
    """

    name: str
    module: str
    head: int
    part: tuple[int, int] = (0, 1)
    of_torch: str = ""
    batch_first: bool = True

    def __str__(self) -> str:
        return self.name

    def reader(self, model: nn.Module) -> Reader:
        """Reads the heads [batch, tokens, heads, features] of a call of the module."""

        def read(args: Any, kwargs: Any, output: Any) -> Tensor | None:
            if self.of_torch:
                output = _projected(model.get_submodule(self.module), self.of_torch, args, kwargs)
            if not isinstance(output, Tensor) or output.ndim != 3:
                return None
            x = output if self.batch_first else output.transpose(0, 1)
            index, count = self.part
            return x.chunk(count, -1)[index].unflatten(-1, (-1, self.head))

        return read


def capture_relations(model: nn.Module, teacher: nn.Module) -> tuple[Captured, Captured]:
    """Capture the projections of both models, in pairs.

    Raises:
        UsageError: if the model has no attention that is known, or those of the teacher differ.
    """
    own = _projections(model)
    if not own:
        raise UsageError(
            "distil: the model has no attention with heads that are known; leave attention out"
        )
    pairs = paired(own, _projections(teacher), "attention")
    return (
        Captured(model, {a.name: (a.module, a.reader(model)) for a, _ in pairs}),
        Captured(teacher, {a.name: (b.module, b.reader(teacher)) for a, b in pairs}),
    )


def relation_distance(own: Tensor, dense: Tensor, mask: Tensor | None) -> Tensor:
    """The mean divergence of the relations of two projections.

    Args:
        own: of the model, [batch, tokens, heads, features].
        dense: of the teacher; heads and features may be others. Both are then split into as many
            parts as divide both numbers of heads.
        mask: bool [batch, tokens], False at padding; None without any.
    """
    parts = math.gcd(own.shape[2], dense.shape[2])
    state, target = (_log_relations(x, parts, mask) for x in (own, dense))
    divergence = F.kl_div(state, target, reduction="none", log_target=True).sum(-1)
    if mask is None:
        return divergence.mean()
    return divergence.movedim(1, -1)[mask].mean()


def _log_relations(x: Tensor, parts: int, mask: Tensor | None) -> Tensor:
    """log R, [batch, parts, tokens, tokens]."""
    x = precise(x).flatten(2).unflatten(-1, (parts, -1)).transpose(1, 2)
    scores = x @ x.mT / math.sqrt(x.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
    return scores.log_softmax(-1)


def _projections(model: nn.Module) -> list[list[Projection]]:
    """By kind, such as the keys of the encoder, the projections of its layers in order.

    Raises:
        UsageError: if the heads of the model cannot be told.
    """
    found: dict[str, list[Projection]] = defaultdict(list)
    modules = dict(model.named_modules())
    for site in find_sites(model, ("head",)):
        if site.refusal and not site.writers:
            raise UsageError(f"distil: {site.refusal}; leave attention out")
        for name, groups in site.writers.items():
            owner = name.rpartition(".")[0]
            attention: Any = modules[owner]
            first = getattr(attention, "batch_first", True)
            kind = re.sub(r"\d+", "#", name)
            if name not in modules:  # a part of the matrix of nn.MultiheadAttention
                letter = name.rpartition(".")[2][0]
                found[kind].append(
                    Projection(name, owner, attention.head_dim, (0, 1), letter, first)
                )
                continue
            # A fused layer has the queries of all groups, then their keys, then their values.
            count = 1 + int((groups.diff() < 0).sum())
            head = _head_size(groups, count)
            for i in range(count):
                label = f"{name}, part {i + 1}" if count > 1 else name
                found[f"{kind} {i}"].append(
                    Projection(label, name, head, (i, count), batch_first=first)
                )
    return list(found.values())


def _head_size(groups: Tensor, parts: int) -> int:
    """Rows of one group in each part."""
    return int((groups == 0).sum()) // parts


def _projected(attention: Any, letter: str, args: Any, kwargs: Any) -> Tensor:
    """The queries, keys or values of a call of nn.MultiheadAttention, which keeps them inside."""
    index = "qkv".index(letter)
    names = ("query", "key", "value")
    x = args[index] if len(args) > index else kwargs[names[index]]
    weight = attention.in_proj_weight
    if weight is None:
        weight = getattr(attention, f"{letter}_proj_weight")
    else:
        weight = weight.chunk(3)[index]
    bias = attention.in_proj_bias
    return F.linear(x, weight, None if bias is None else bias.chunk(3)[index])
