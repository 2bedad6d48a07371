"""Adjacent layers of recurrent networks: the gates of a unit, and all that read its state.

They are those of the sites of their units: the rows of ih and hh of all gates compute the state, or
those of a projection hr. The columns of hh read it at the next step, and those of ih in the next
layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from torch import nn

from sparse_engine.pruning.coupling.link import Link
from sparse_engine.pruning.unrolled import is_unrolled
from sparse_engine.structures.tables import recurrent


def links(model: nn.Module) -> Iterator[Link]:
    """The links inside every unrolled network and cell."""
    inside = {name for name, module in model.named_modules() if is_unrolled(module)}
    for site in recurrent.sites(model, {}):
        for writer, reader in product(site.writers, site.readers):
            owner = writer.rpartition(".")[0]
            if owner in inside and reader.rpartition(".")[0] == owner:
                yield Link(writer, reader, site.writers[writer], site.readers[reader])
