"""The units of recurrent layers in the order of their removal, by what each costs the outputs.

All layers that read a unit count: the gates of its own layer, those of the next one, and what lies
behind the network. Their errors are weighted by the gradients of the outputs, as in `GateMoments`,
so that they can be added up. Gates are fitted again on [x; h] after each removal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_engine.pruning.criteria.groups import Removals, columns_of
from sparse_engine.pruning.criteria.structured_obs import ReaderCosts, removal_order
from sparse_engine.pruning.gates.costs import with_ridge
from sparse_engine.pruning.gates.moments import GateMoments
from sparse_engine.pruning.gates.pairs import GatePair, SingleLayer, joint_weights
from sparse_engine.pruning.source import LayerSource
from sparse_engine.structures import Site


def unit_removals(source: LayerSource, sites: Sequence[Site], seed: int) -> dict[str, Removals]:
    """The order of removal and the costs, as shares of the weighted energy, by site.

    Sites whose readers the outputs do not depend on are missing, and so are all that are not of
    recurrent layers.

    Args:
        source: the layers of the dense model.
        sites: of any kind.
        seed: of the random numbers of the loss.
    """
    single = {layer.name: SingleLayer(layer) for layer in source.layers}
    of_layer: dict[str, GatePair | SingleLayer] = {**single}
    pairs = source.gate_pairs()
    of_layer |= {layer.name: pair for pair in pairs for layer in pair.layers}
    paired = {layer.name for pair in pairs for layer in pair.layers}
    chosen = [site for site in sites if not paired.isdisjoint((*site.writers, *site.readers))]
    if not chosen:
        return {}
    needed = {of_layer[name].layers[0].name: of_layer[name] for s in chosen for name in s.readers}
    found = dict(zip(needed, source.gate_moments(list(needed.values()), seed), strict=True))
    removals: dict[str, Removals] = {}
    for site in chosen:
        costs: list[ReaderCosts] = []
        energy = 0.0
        for name, groups in site.readers.items():
            reader = of_layer[name]
            moments = found[reader.layers[0].name]
            if moments is None:
                break
            # The columns of hh follow those of ih.
            first = reader.layers[0].shape[1] if name != reader.layers[0].name else 0
            columns = columns_of(groups, site.groups) + first
            new, own = _costs(reader, moments, columns)
            costs, energy = costs + new, energy + own
        else:
            order = removal_order(costs, site.groups)
            removals[site.name] = Removals(order.order, order.costs / max(energy, 1e-300))
    return removals


def _costs(
    reader: GatePair | SingleLayer, moments: GateMoments, columns: Tensor
) -> tuple[list[ReaderCosts], float]:
    """What units cost each set of rows, and the weighted energy of all outputs."""
    target = torch.cat(joint_weights(reader.layers), 1).double()
    target *= moments.scales().double().sqrt()[:, None]
    costs: list[ReaderCosts] = []
    energy = 0.0
    for rows, hessian in zip(target.split(moments.set_size), moments.hessians, strict=True):
        energy += float(((rows @ hessian.double()) * rows).sum())
        costs.append(ReaderCosts(rows, with_ridge(hessian), columns))
    return costs, energy
