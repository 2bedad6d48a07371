"""The units of recurrent layers in the order of their removal, by what each costs the outputs.

All layers that read a unit count: the gates of its own layer, those of the next one, and what lies
behind the network. Their errors are weighted by the gradients of the outputs, as in `GateMoments`,
so that they can be added up. Gates are fitted again on [x; h] after each removal. The two
directions of a layer lose their units in turns, because the same layers read both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

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
    for together in _with_common_readers(chosen):
        names = {name for site in together for name in site.readers}
        moments = {name: found[of_layer[name].layers[0].name] for name in names}
        if all(of_reader is not None for of_reader in moments.values()):
            removals |= _in_turns(together, of_layer, moments)
    return removals


def _with_common_readers(sites: Sequence[Site]) -> list[list[Site]]:
    """The directions of one layer of a network together, as the next layer reads both."""
    together: list[list[Site]] = []
    for site in sites:
        for others in together:
            if others[0].even == site.even and others[0].readers.keys() & site.readers.keys():
                others.append(site)
                break
        else:
            together.append([site])
    return together


def _in_turns(
    sites: Sequence[Site],
    of_layer: Mapping[str, GatePair | SingleLayer],
    found: Mapping[str, GateMoments | None],
) -> dict[str, Removals]:
    """The removals of sites that lose their units in turns."""
    starts = [0, *accumulate(site.groups for site in sites)]
    turns = [torch.arange(first, last) for first, last in pairwise(starts)]
    costs: list[_Members] = []
    energy = 0.0
    for name in dict.fromkeys(name for site in sites for name in site.readers):
        reader, moments = of_layer[name], found[name]
        assert moments is not None
        # The columns of hh follow those of ih.
        first = reader.layers[0].shape[1] if name != reader.layers[0].name else 0
        members = [i for i, site in enumerate(sites) if name in site.readers]
        columns = [columns_of(sites[i].readers[name], sites[i].groups) + first for i in members]
        new, own = _costs(reader, moments, torch.cat(columns))
        units = torch.cat([turns[i] for i in members])
        costs += [_Members(one, units) for one in new]
        energy += own
    order = removal_order(costs, starts[-1], turns)
    removals = {}
    for site, units in zip(sites, turns, strict=True):
        of_site = torch.isin(order.order, units)
        removals[site.name] = Removals(
            order.order[of_site] - units[0], order.costs[of_site] / max(energy, 1e-300)
        )
    return removals


class _Members:
    """Costs of a layer that reads some of the groups.

    Args:
        costs: by number among these groups.
        groups: int64, these groups, ascending.
    """

    def __init__(self, costs: ReaderCosts, groups: Tensor) -> None:
        self._costs, self._groups = costs, groups

    def of(self, groups: Tensor) -> Tensor:
        read = torch.isin(groups, self._groups)
        found = torch.zeros(len(groups), dtype=torch.float64)
        if read.any():
            found[read] = self._costs.of(self._numbers(groups[read])).cpu()
        return found

    def remove(self, groups: Tensor) -> float:
        read = groups[torch.isin(groups, self._groups)]
        return self._costs.remove(self._numbers(read)) if len(read) else 0.0

    def _numbers(self, groups: Tensor) -> Tensor:
        return torch.searchsorted(self._groups, groups)


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
