"""How much pruning a model bears: rounds until a metric drops, and a search with cross-validation.

`prune_until` prunes more and more in rounds, with training in between, and gives back the last
state whose metric is good enough. `search` compares settings of `prune` and changes nothing.
"""

from __future__ import annotations

from sparse_engine.tuning.candidate import Candidate
from sparse_engine.tuning.report import UntilReport
from sparse_engine.tuning.retrain import Retrain
from sparse_engine.tuning.rounds import Round
from sparse_engine.tuning.search import search
from sparse_engine.tuning.search_report import SearchReport
from sparse_engine.tuning.until import prune_until
from sparse_engine.tuning.widen import Widen

__all__ = [
    "Candidate",
    "Retrain",
    "Round",
    "SearchReport",
    "UntilReport",
    "Widen",
    "prune_until",
    "search",
]
