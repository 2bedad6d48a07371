"""Sites: places in a model where groups of features are computed by some layers and read by others.

Removing a group removes rows of its writers and columns of its readers. Layers have the names of
the unrolled model (see pruning/unrolled): `lstm.hh_l0`, `attention.q_proj`, `conv.linears.0`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Size:
    """An attribute of a module that counts groups, or the features in them.

    Attributes:
        module: dotted name of the module.
        attribute: its name.
        per_group: how much of it belongs to one group.
        fixed: what belongs to no group.
    """

    module: str
    attribute: str
    per_group: int
    fixed: int = 0


@dataclass(frozen=True)
class Site:
    """One place with groups that can be removed.

    Group numbers are int64 tensors; -1 marks a row or column that belongs to no group and stays.

    Attributes:
        name: dotted name of the module that holds the groups; unique among the sites of a kind.
        kind: text form of the structure, such as "head".
        groups: how many there are.
        writers: by layer, the group of each row; these rows compute the groups.
        readers: by layer, the group of each column; these columns read them.
        between: by module, the group of each of its features: norms of channels, and embeddings
            whose columns belong to groups.
        sizes: attributes that change with the number of groups.
        even: sites of the same text lose equally many groups; "" for a site by itself.
        refusal: why the groups cannot be removed, and what to do; "" if they can.
        least: the fewest groups that are kept.
        multiple: how many are kept is a multiple of it.
        layers: how many layers of a stack lose a part of each group, as with heads that share a
            position bias.
        rerouted: whether the groups that are left take over from those that go, as experts do.
    """

    name: str
    kind: str
    groups: int
    writers: Mapping[str, Tensor]
    readers: Mapping[str, Tensor]
    between: Mapping[str, Tensor] = field(default_factory=dict)
    sizes: tuple[Size, ...] = ()
    even: str = ""
    refusal: str = ""
    least: int = 1
    multiple: int = 1
    layers: int = 1
    rerouted: bool = False

    def kept(self, wanted: int) -> int:
        """How many groups are kept where `wanted` would be without the limits of the site."""
        rounded = -(-wanted // self.multiple) * self.multiple
        return min(max(rounded, self.least), self.groups)


@dataclass(frozen=True)
class Left:
    """Groups that cannot be removed.

    Attributes:
        name: dotted name of the module that holds them.
        kind: text form of the structure.
        reason: which module is in the way, in a sentence.
    """

    name: str
    kind: str
    reason: str
