"""Joint pruning of the input and the recurrent matrix of recurrent layers and cells.

The pre-activation of a gate is linear in [x; h], so the two matrices make up for each other, and
one least-squares problem covers both.
"""

from sparse_engine.pruning.gates.collect import collect_moments
from sparse_engine.pruning.gates.moments import GateMoments
from sparse_engine.pruning.gates.pairs import GatePair, SingleLayer, find_pairs

__all__ = ["GateMoments", "GatePair", "SingleLayer", "collect_moments", "find_pairs"]
