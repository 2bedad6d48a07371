"""The models whose blocks can be removed, and where they count them.

A model belongs here if its blocks run in the order of a list, and if a model that is built with
fewer blocks computes the same as this one without the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.models.base import model_type
from sparse_engine.structures.blocks.stack import FirstOnly, Stack

BIAS_OF_T5 = FirstOnly(
    "layer.0.SelfAttention", "relative_attention_bias", "has_relative_attention_bias"
)
# Attributes of the module that holds a list which count its blocks.
COUNTS = ("n_layers",)
# Lists of configs with an item for each block.
LISTS = ("layer_types",)
# Attributes of the module that holds a list which tell whether an item is in these lists.
FLAGS = (("has_sliding_layers", "sliding_attention"),)
# Options of configs that make a block depend on its number.
NUMBERED = ("scale_attn_by_inverse_layer_idx",)


@dataclass(frozen=True)
class Row:
    """Stacks of models of transformers.

    Attributes:
        model_types: those of their configs.
        modules: how the dotted name of the nn.ModuleList ends.
        count: the option of the config that is the number of blocks.
        own_count: one more, of the innermost config.
        first_only: what only the first block has.
    """

    model_types: tuple[str, ...]
    modules: str
    count: str
    own_count: str = ""
    first_only: FirstOnly | None = None


ROWS = (
    Row(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet"),
        "encoder.layer",
        "num_hidden_layers",
    ),
    Row(("distilbert",), "transformer.layer", "n_layers"),
    Row(("gpt2",), "h", "n_layer"),
    Row(
        ("llama", "mistral", "qwen2", "qwen3", "granite", "gpt_neox", "phi", "phi3"),
        "layers",
        "num_hidden_layers",
    ),
    Row(("gemma", "gemma2"), "layers", "num_hidden_layers"),
    Row(("eurobert", "nomic_bert"), "layers", "num_hidden_layers"),
    Row(("opt",), "decoder.layers", "num_hidden_layers"),
    Row(("t5", "mt5"), "encoder.block", "num_layers", "", BIAS_OF_T5),
    Row(("t5", "mt5"), "decoder.block", "num_decoder_layers", "num_layers", BIAS_OF_T5),
    Row(("marian", "bart", "mbart", "pegasus", "m2m_100"), "encoder.layers", "encoder_layers"),
    Row(("marian", "bart", "mbart", "pegasus", "m2m_100"), "decoder.layers", "decoder_layers"),
)
TORCH_STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)


def find_stacks(model: nn.Module) -> list[Stack]:
    """The stacks of a model, or of models inside of it, in the order of its modules.

    Raises:
        UsageError: if the config counts other blocks than there are, or the blocks depend on their
            numbers.
    """
    modules = dict(model.named_modules())
    stacks = []
    for name, module in modules.items():
        if isinstance(module, TORCH_STACKS):
            dot = f"{name}." if name else ""
            places = _places(f"{dot}layers", module.layers)
            stacks.append(Stack(f"{dot}layers", places, ((module, "num_layers"),)))
        elif isinstance(module, nn.ModuleList):
            stacks += _of_family(name, module, modules)
    return stacks


def _of_family(name: str, blocks: nn.ModuleList, modules: dict[str, nn.Module]) -> Iterator[Stack]:
    """The stack of an nn.ModuleList below a model of transformers, if the table has it."""
    above = [modules[path] for path in _paths_above(name)]
    holders = [module for module in above if hasattr(module, "config")]
    if not holders:
        return
    own: Any = holders[-1].config
    row = next((row for row in ROWS if _matches(row, holders[-1], name)), None)
    if row is None or not len(blocks):
        return
    configs: list[Any] = []
    for holder in holders:
        if not any(holder.config is config for config in configs):
            configs.append(holder.config)
    counts = [(config, row.count) for config in configs if _counts(config, row.count, blocks)]
    if row.own_count:
        counts.append((own, row.own_count))
    for config, option in counts or [(own, row.count)]:
        if not _counts(config, option, blocks):
            found = getattr(config, option, None)
            raise UsageError(f"{name} has {len(blocks)} layers, but config.{option} is {found!r}")
    for option in NUMBERED:
        if getattr(own, option, False):
            raise UsageError(f"config.{option} makes a layer depend on its number: none can go")
    parent = above[-1]
    counts += [(parent, attribute) for attribute in COUNTS if attribute in parent.__dict__]
    flags = [(parent, flag, item) for flag, item in FLAGS if flag in parent.__dict__]
    lists = [
        (config, option)
        for config in configs
        for option in LISTS
        if len(getattr(config, option, None) or ()) >= len(blocks)
    ]
    places = _places(name, blocks)
    yield Stack(name, places, tuple(counts), tuple(lists), tuple(flags), row.first_only)


def _places(name: str, blocks: Any) -> tuple[str, ...]:
    """The dotted names of blocks, also where two of them hold one module."""
    return tuple(f"{name}.{i}" for i in range(len(blocks)))


def _paths_above(name: str) -> list[str]:
    """The dotted names of the modules that hold a module, the outermost first."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]


def _matches(row: Row, holder: nn.Module, name: str) -> bool:
    return model_type(holder) in row.model_types and f".{name}".endswith(f".{row.modules}")


def _counts(config: Any, option: str, blocks: nn.ModuleList) -> bool:
    return bool(getattr(config, option, None) == len(blocks))
