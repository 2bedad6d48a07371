"""Adjacent layers: which of them read what another one computes, unit by unit."""

from sparse_engine.pruning.coupling.energies import Coupling, couple
from sparse_engine.pruning.coupling.find import find_links
from sparse_engine.pruning.coupling.link import Link

__all__ = ["Coupling", "Link", "couple", "find_links"]
