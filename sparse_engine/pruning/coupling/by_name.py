"""Adjacent layers by their names in Transformers: up and down projections, values and outputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparse_engine.modules.linears import is_linear, weight_of
from sparse_engine.pruning.coupling.link import Link, in_order, in_turns, side_by_side

# The names of two layers below one module: the one that computes hidden units, and their reader.
FEED_FORWARD = (
    ("intermediate.dense", "output.dense"),
    ("intermediate_dense", "output_dense"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("gate_proj", "down_proj"),
    ("up_proj", "down_proj"),
    ("linear1", "linear2"),
    ("fc_in", "fc_out"),
    ("c_fc", "c_proj"),
    ("lin1", "lin2"),
    ("wi_0", "wo"),
    ("wi_1", "wo"),
    ("fc1", "fc2"),
    ("wi", "wo"),
    ("w1", "w2"),
    ("w3", "w2"),
)
# A gate and the units in one layer, twice as many rows as units.
GATED = (
    ("gate_up_proj", "down_proj"),
    ("Wi", "Wo"),
)
# The features of a value pass to the output projection in their places, averaged over tokens.
ATTENTION = (
    ("self.value_proj", "output.dense"),
    ("attention.value", "output.dense"),
    ("self.value", "output.dense"),
    ("v_lin", "out_lin"),
    ("v_proj", "out_proj"),
    ("v_proj", "o_proj"),
    ("v_proj", "dense"),
    ("v", "o"),
)
INTERLEAVED = ("GptOssExperts",)
"""Classes whose gated layer has the two rows of a unit next to each other."""


def links(model: nn.Module) -> Iterator[Link]:
    """The links between layers that have one of these pairs of names and fitting shapes."""
    modules = dict(model.named_modules())
    weights = {name: weight_of(module) for name, module in modules.items() if is_linear(module)}
    for reader, weight in weights.items():
        for kind in (FEED_FORWARD, GATED, ATTENTION):
            for producer_name, reader_name in kind:
                found = _sibling(reader, reader_name, producer_name)
                if found is None or found[0] not in weights:
                    continue
                producer, parent = found
                sides = _sides(kind, modules[parent], weights[producer].shape[0], weight.shape[1])
                if sides is not None:
                    yield Link(producer, reader, *sides)


def _sibling(name: str, ending: str, other: str) -> tuple[str, str] | None:
    """The layer below the same module with another ending, and the name of that module.

    The number of an expert may follow the ending: down_proj.3.
    """
    path, number = name, ""
    if (last := name.rpartition("."))[2].isdigit():
        path, number = last[0], f".{last[2]}"
    if path != ending and not path.endswith(f".{ending}"):
        return None
    parent = path.removesuffix(ending)
    return f"{parent}{other}{number}", parent.removesuffix(".")


def _sides(
    kind: tuple[tuple[str, str], ...], parent: nn.Module, out: int, columns: int
) -> tuple[Tensor, Tensor] | None:
    """The units of the rows and the columns; None if the shapes do not fit.

    Args:
        kind: FEED_FORWARD, GATED or ATTENTION.
        parent: the module that holds both layers.
        out: rows of the producer.
        columns: of the reader.
    """
    if kind is GATED:
        if out != 2 * columns:
            return None
        together = type(parent).__name__ in INTERLEAVED
        rows = side_by_side(columns, 2) if together else in_turns(columns, 2)
        return rows, in_order(columns)
    if out == columns:
        return in_order(out), in_order(columns)
    width = getattr(parent, "head_dim", None)
    if kind is not ATTENTION or not isinstance(width, int) or out % width or columns % out:
        return None
    # Grouped queries: several heads of the output read one head of values.
    head = torch.arange(columns) // width // (columns // out)
    return in_order(out), head * width + torch.arange(columns) % width
