"""The sites that take part in a run, and the sparsities that some of them have of their own."""

from __future__ import annotations

from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.models import find_family, model_type
from sparse_engine.pruning.cutting.method import CutMethod
from sparse_engine.pruning.plan import Filter, Selection
from sparse_engine.pruning.plan.selection import IGNORED
from sparse_engine.pruning.unrolled import unrolled
from sparse_engine.structures import Site, find_left

# Modules whose groups can be removed where the layers that read them are stated.
SOURCES = {"filter": nn.Conv1d, "unit": nn.Linear}


def chosen_sites(
    model: nn.Module,
    sites: list[Site],
    method: CutMethod,
    selection: Selection,
    filter_fn: Filter | None,
) -> list[Site]:
    """The sites that take part; every kind has one, and every pattern matches one.

    A site takes part if all layers that compute it are chosen, and none of its layers is ignored or
    left out by a filter.

    Args:
        model: any module.
        sites: all that were found in it.
        method: what is removed.
        selection: layers by patterns of their names.
        filter_fn: filter_fn(module, name) decides about linear layers; None for all.

    Raises:
        UsageError: if a pattern matches nothing, or nothing is left of a kind of structures.
    """
    names = [name for site in sites for name in (*site.writers, *site.readers)]
    left = selection.left(names, [site.name for site in sites], {})
    ignored = {name for name, reason in left.items() if reason == IGNORED}
    left_out = set() if filter_fn is None else _left_out(model, set(names), filter_fn)
    chosen = [
        site
        for site in sites
        if left.keys().isdisjoint(site.writers)
        and ignored.isdisjoint(site.readers)
        and left_out.isdisjoint((*site.writers, *site.readers))
    ]
    for site in chosen:
        if site.refusal:
            raise UsageError(f"{site.kind}: {site.refusal}")
        others = [other.name for other in sites if site.even and other.even == site.even]
        if unchosen := set(others) - {other.name for other in chosen}:
            raise UsageError(
                f"{site.kind}: {site.name} and {sorted(unchosen)[0]} keep the same size; choose "
                "both, or ignore both"
            )
    for kind in method.structures:
        if not any(site.kind == kind for site in chosen):
            raise UsageError(f"there is no {kind} to remove {_why_none(model, sites, kind)}")
    return chosen


def _why_none(model: nn.Module, sites: list[Site], kind: str) -> str:
    if any(site.kind == kind for site in sites):
        return "among the chosen layers"
    type_ = model_type(model)
    if type_ and not any(find_family(module) for module in model.modules()):
        return f"in this model: {type_} is no known family of models"
    for left in find_left(model, kind):
        return f"in this model: {left.name or 'it'} stays, {left.reason}"
    for name, module in model.named_modules():
        if name and isinstance(module, SOURCES.get(kind, ())):
            return (
                f"in this model: what reads {name} is not known; state the module that does, as "
                f"{kind}(readers='{name}: MODULE')"
            )
    return "in this model"


def own_sparsities(sites: list[Site], method: CutMethod) -> dict[str, float]:
    """The sparsities of sites that have one of their own.

    Raises:
        UsageError: if a pattern matches no site, or only some of those that lose equally many.
    """
    own: dict[str, float] = {}
    for pattern, sparsity in method.own:
        names = {site.name: (site.name, *site.writers, *site.readers) for site in sites}
        pattern.check([name for of_site in names.values() for name in of_site], "override")
        matched = [site for site, of in names.items() if any(map(pattern.matches, of))]
        new = [site for site in matched if site not in own]
        if not new:
            raise UsageError(
                f"override {pattern.text!r} has no effect: an earlier override matches all of its "
                "sites"
            )
        own |= dict.fromkeys(new, sparsity)
    shares: dict[str, set[float | None]] = {}
    for site in sites:
        if site.even:
            shares.setdefault(site.even, set()).add(own.get(site.name))
    if uneven := next((even for even, of in shares.items() if len(of) > 1), None):
        raise UsageError(
            f"an override matches only some of the sites of {uneven}, which have to "
            "lose equally many groups"
        )
    return own


def _left_out(model: nn.Module, names: set[str], filter_fn: Filter) -> set[str]:
    """The layers that do not pass a filter."""
    with unrolled(model):
        return {name for name in names if not filter_fn(model.get_submodule(name), name)}
