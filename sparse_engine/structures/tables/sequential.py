"""Units and filters of nn.Sequential: chains of linear layers and of convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from sparse_engine.modules.eligible import skip_reason
from sparse_engine.structures.chains import Chain, chains
from sparse_engine.structures.site import Left, Site


def sites(model: nn.Module) -> Iterator[Site | Left]:
    """The hidden features between two layers of every nn.Sequential; those that stay, and why."""
    for chain in chains(model):
        if not chain.last and not chain.broken_by:  # what reads the features is not known
            continue
        kind = "filter" if type(model.get_submodule(chain.first)) is nn.Conv1d else "unit"
        if reason := _refusal(model, chain):
            yield Left(chain.first, kind, reason)
        else:
            yield Site(
                chain.first, kind, chain.features, chain.writers, chain.readers, chain.between
            )


def _refusal(model: nn.Module, chain: Chain) -> str:
    """Why the features of a chain stay; "" if they can be removed."""
    for name in chain.modules:
        module: Any = model.get_submodule(name)
        if name == chain.broken_by:
            return f"{name} is a {type(module).__name__}, which may mix what it reads"
        if isinstance(module, nn.Conv1d) and module.groups > 1:
            return f"{name} has {module.groups} groups of channels"
        if reason := skip_reason(module, type(module)):
            return f"{name} {reason}"
    return ""
