"""What is left of each attention head of a pruned model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.models import find_family
from sparse_engine.modules.cut_attention import CutMultiheadAttention
from sparse_engine.modules.linears import is_linear, weight_of
from sparse_engine.pruning.layer_report import HeadsReport


def heads_of(model: nn.Module) -> list[HeadsReport]:
    """The heads of every attention of the known model families, and of nn.MultiheadAttention.

    Args:
        model: a model that is no longer unrolled.
    """
    modules = dict(model.named_modules())
    found: list[HeadsReport] = []
    for query, output, size in _attentions(modules):
        if not (is_linear(modules[output]) and (query == "" or is_linear(modules[query]))):
            continue
        read = weight_of(modules[output]) != 0
        heads = read.shape[1] // size
        if query:
            owner, queries = query, weight_of(modules[query])
        else:  # nn.MultiheadAttention has no layer of its own for queries
            owner = output.rpartition(".")[0]
            attention = modules[owner]
            joint = attention.in_proj_weight
            queries = attention.q_proj_weight if joint is None else joint
        written = queries.detach()[: heads * size] != 0
        if not heads or written.shape[0] != heads * size or read.shape[1] != heads * size:
            continue
        kept = written.reshape(heads, -1).sum(1) + read.reshape(-1, heads, size).sum((0, 2))
        weights = (written.numel() + read.numel()) / heads
        found.append(HeadsReport(owner, tuple((kept / weights).tolist())))
    return found


def _attentions(modules: dict[str, nn.Module]) -> Iterator[tuple[str, str, int]]:
    """Names of the layers of queries ("" for torch's attention) and outputs; features of a head."""
    seen: set[str] = set()
    for prefix, module in modules.items():
        dot = f"{prefix}." if prefix else ""
        if type(module) is nn.MultiheadAttention:
            yield "", f"{dot}out_proj", module.head_dim
        elif isinstance(module, CutMultiheadAttention):
            yield f"{dot}q_proj", f"{dot}out_proj", module.head_dim
        family = find_family(module)
        if family is None:
            continue
        try:
            stacks = family.stacks(module)
        except UnsupportedModelError:
            continue
        for stack in stacks:
            for layer, geometry in zip(stack.layers, stack.geometry, strict=True):
                for names in (stack.names.attention, stack.names.cross_attention):
                    name = f"{dot}{layer}.{names.query}" if names else ""
                    if names and name in modules and name not in seen:
                        seen.add(name)
                        yield name, f"{dot}{layer}.{names.output}", geometry.head_size
