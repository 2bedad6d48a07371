"""The groups of structures that remained when a model was cut, to be taken out of it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError
from sparse_engine.pruning.cutting import find_layer, find_structures
from sparse_engine.pruning.report import PruneReport
from sparse_engine.structures import (
    Read,
    Structure,
    find_sites,
    find_stacks,
    remove_blocks_,
    resize_,
)


@dataclass(frozen=True)
class Kept:
    """What one cut left.

    Attributes:
        structures: that were taken out.
        groups: by the name of a site, or of a stack of layers, the numbers of the groups that
            remained, int64, ascending. Sites that kept all are not among them.
    """

    structures: tuple[Structure, ...]
    groups: Mapping[str, Tensor]

    @classmethod
    def of(cls, structures: tuple[Structure, ...], report: PruneReport) -> Kept:
        """What the report of a cut tells."""
        changed = [site for site in report.sites if len(site.kept) < site.groups]
        return cls(structures, {site.name: torch.tensor(site.kept) for site in changed})

    def apply_(self, model: nn.Module) -> None:
        """Take the same groups out of a model that is as it was before the cut.

        Raises:
            InvalidFileError: if it has no such sites, or not as many groups.
        """
        if find_layer(self.structures):
            stacks = [stack for stack in find_stacks(model) if stack.name in self.groups]
            self._check({stack.name: len(stack.blocks) for stack in stacks})
            remove_blocks_(model, {n: of.tolist() for n, of in self.groups.items()}, stacks)
            return
        kinds = tuple(structure.name for structure in self.structures)
        readers: dict[str, tuple[str, ...]] = {}
        for structure in self.structures:
            if isinstance(structure, Read):
                readers |= structure.readers_by_source
        sites = [s for s in find_sites(model, kinds, readers) if s.name in self.groups]
        self._check({site.name: site.groups for site in sites})
        resize_(model, self.groups, sites)

    def to_dict(self) -> dict[str, Any]:
        """Texts and tensors, for a state dict."""
        return {"structures": list(map(str, self.structures)), "groups": dict(self.groups)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Kept:
        """From what `to_dict` gave; raises InvalidFileError."""
        try:
            names, groups = values["structures"], dict(values["groups"])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise TypeError("its structures are no list of names")
            structures = find_structures(names)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidFileError(f"the state holds a cut that cannot be read: {error}") from None
        if not structures:
            raise InvalidFileError("the state holds a cut of no structures")
        for name, of in groups.items():
            whole = isinstance(of, Tensor) and of.dtype == torch.int64 and of.dim() == 1
            if not whole or not len(of) or int(of[0]) < 0 or bool((of.diff() <= 0).any()):
                raise InvalidFileError(f"the state holds no ascending groups of {name!r:.80}")
        return cls(structures, groups)

    def _check(self, sizes: Mapping[str, int]) -> None:
        for name, of in self.groups.items():
            if int(of[-1]) >= sizes.get(name, 0):
                raise InvalidFileError(
                    f"the state has group {int(of[-1])} of {name!r:.80}, this model has "
                    f"{sizes.get(name, 0)}: make the model as it was before the training"
                )
