"""Which recurrent layers of a run are pruned jointly, and their rows in the report."""

from __future__ import annotations

from collections.abc import Mapping

from sparse_engine.pruning.allocators import Setting
from sparse_engine.pruning.criteria.obs import OBS
from sparse_engine.pruning.gates.pairs import GatePair
from sparse_engine.pruning.gates.prune import can_join, prune_pair
from sparse_engine.pruning.granularity import KeptColumns
from sparse_engine.pruning.layer_report import LayerReport
from sparse_engine.pruning.method import Method
from sparse_engine.pruning.progress import Progress
from sparse_engine.pruning.source import LayerSource


def prune_gates(
    source: LayerSource,
    settings: Mapping[str, Setting],
    method: Method,
    seed: int,
    progress: Progress,
) -> list[LayerReport]:
    """Prune recurrent layers in place, before all other layers.

    These are the pairs whose criterion is obs, and those whose columns have been chosen, if they
    are to be refitted. Pairs of different granularities or criteria, and those that the outputs do
    not depend on, are left to the loop over layers.

    Args:
        source: the layers.
        settings: how each layer is pruned.
        method: the criterion of each layer.
        seed: of the random numbers of the loss.
        progress: is called after every layer.

    Returns:
        A row for each layer that was pruned.
    """
    pairs = [pair for pair in source.gate_pairs() if _is_joint(pair, settings, method)]
    rows: list[LayerReport] = []
    if not pairs:
        return rows
    for pair, moments in zip(pairs, source.gate_moments(pairs, seed), strict=True):
        if moments is None:
            continue
        criterion = method.for_layer(pair.ih.name).criterion
        ih, hh = (settings[layer.name] for layer in pair.layers)
        for row in prune_pair(pair, moments, (ih, hh), criterion):
            rows.append(row)
            progress.finished(row.name)
    return rows


def refits_gates(method: Method) -> bool:
    """Whether recurrent layers are refitted once the columns that they lose have been chosen."""
    return method.criterion.fits or method.recovery.fits_dense_model


def _is_joint(pair: GatePair, settings: Mapping[str, Setting], method: Method) -> bool:
    if all(isinstance(settings[layer.name].granularity, KeptColumns) for layer in pair.layers):
        return refits_gates(method)
    criteria = [method.for_layer(layer.name).criterion for layer in pair.layers]
    granularities = [settings[layer.name].granularity for layer in pair.layers]
    return (
        isinstance(criteria[0], OBS)
        and criteria[0] == criteria[1]
        and granularities[0] == granularities[1]
        and can_join(pair, granularities[0])
    )
