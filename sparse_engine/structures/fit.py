"""Fits a model as its config builds it to the shapes of stored weights, of which groups are gone.

The shapes tell how many groups of each site remain. Which ones does not matter to a model without
weights: all groups of a site are alike.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError, UnsupportedModelError, UsageError
from sparse_engine.modules.linears import is_conv1d, is_linear
from sparse_engine.structures.find import NONE, find_sites
from sparse_engine.structures.resize import check_resizable, owner_of, resize_
from sparse_engine.structures.site import Site
from sparse_engine.structures.structure import STRUCTURES

Shape = tuple[int, ...]

# The tables number every row and column of a model, whose sizes may come from a hostile file.
MAX_FEATURES = 1 << 26


@dataclass
class Equation:
    """One size of a stored tensor: the sum of what the removed groups of sites had is missing.

    Attributes:
        tensor: name of the parameter, or of a layer of the unrolled model.
        stored: its shape.
        built: the size that the config makes it have.
        size: the size that it has.
        per_group: by the index of a site, the part of one group.
    """

    tensor: str
    stored: Shape
    built: int
    size: int
    per_group: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Remaining:
    """A site that lost groups.

    Attributes:
        name, kind: of the site.
        kept: how many groups remain.
        groups: how many there are by the config.
    """

    name: str
    kind: str
    kept: int
    groups: int


@dataclass(frozen=True)
class Fit:
    """What stored weights lack.

    Attributes:
        left: how many groups remain, by the names of the sites that lost some.
        sites: these sites.
    """

    left: dict[str, int] = field(default_factory=dict)
    sites: tuple[Site, ...] = ()

    @property
    def remaining(self) -> tuple[Remaining, ...]:
        """What is left of each site that lost groups."""
        left = self.left
        return tuple(Remaining(s.name, s.kind, left[s.name], s.groups) for s in self.sites)

    def apply_(self, model: nn.Module) -> None:
        """Remove the last groups of the sites of a model, which is as its config builds it."""
        with torch.device("cpu"):  # transformers builds models with meta as the default
            kept = {name: torch.arange(count) for name, count in self.left.items()}
            resize_(model, kept, self.sites)


def find_fit(
    model: nn.Module,
    shapes: Mapping[str, Shape],
    layers: Mapping[str, Shape] | None = None,
    sites: Iterable[Site] | None = None,
    readers: Mapping[str, Sequence[str]] = NONE,
) -> Fit:
    """How many groups of the sites of a model remain in stored weights.

    Tensors that differ from the model in more than groups that are missing are left out: comparing
    the model with the file is up to the caller.

    Args:
        model: as its config builds it; it may be on the meta device, and is not changed.
        shapes: of stored parameters by their names in the model.
        layers: [out, in] of stored layers by their names in the unrolled model.
        sites: where groups may be gone; by default all that the tables find.
        readers: by module, those that were stated to read its outputs, as `find_sites` takes them.

    Raises:
        InvalidFileError: if no whole number of groups is missing, no group remains, the tensors
            of a site contradict each other, or `readers` do not fit the model.

    Example:
        find_fit(model, {name: tuple(t.shape) for name, t in stored.items()}).apply_(model)
    """
    shapes, layers = _as_parameters(model, shapes, layers or {})
    different = _different(model, shapes, layers)
    if not different or _features(model) > MAX_FEATURES:
        return Fit()
    try:
        found = _all_sites(model, readers) if sites is None else sites
        chosen = _separate([s for s in found if s.groups > 1 and _touches(model, s, different)])
        equations = _equations(model, chosen, shapes, layers)
    except (UnsupportedModelError, UsageError):  # no family of the tables, or shared weights
        return Fit()
    except InvalidFileError:
        raise
    except Exception as error:  # sizes of a hostile config that do not fit each other
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidFileError(f"its heads and units cannot be found: {reason:.200}") from None
    removed = _solve(chosen, equations)
    counts = {i: removed.get(first, 0) for i, first in enumerate(_firsts(model, chosen))}
    left = {chosen[i].name: chosen[i].groups - count for i, count in counts.items() if count}
    return Fit(left, tuple(site for site in chosen if site.name in left))


def hollow(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters and buffers are on the meta device."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _all_sites(model: nn.Module, readers: Mapping[str, Sequence[str]]) -> list[Site]:
    kinds = tuple(structure.name for structure in STRUCTURES)
    try:
        return find_sites(model, kinds, readers)
    except UsageError as error:
        if not readers:
            raise
        raise InvalidFileError(f"its recipe does not fit the model: {error}") from None


def _as_parameters(
    model: nn.Module, shapes: Mapping[str, Shape], layers: Mapping[str, Shape]
) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The shapes with those of linear layers of the model; and the layers inside of modules."""
    found, inside = dict(shapes), dict[str, Shape]()
    for name, shape in layers.items():
        owner, rest = owner_of(model, name)
        module = model.get_submodule(owner)
        if rest or not is_linear(module):
            inside[name] = shape
        else:
            found[f"{name}.weight"] = shape[::-1] if is_conv1d(module) else shape
    return found, inside


def _different(
    model: nn.Module, shapes: Mapping[str, Shape], layers: Mapping[str, Shape]
) -> set[str]:
    """The modules with tensors of other shapes than the stored ones, or with layers inside."""
    own = _shapes(model)
    names = {name.rpartition(".")[0] for name, shape in shapes.items() if own.get(name) != shape}
    return names | {owner_of(model, name)[0] for name in layers}


def _touches(model: nn.Module, site: Site, modules: set[str]) -> bool:
    """Whether a site has layers in some modules, or above them."""
    owners = _owners(model, site)
    return any(
        not owner or f"{module}.".startswith(f"{owner}.") for owner in owners for module in modules
    )


def _shapes(model: nn.Module) -> dict[str, Shape]:
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def _features(model: nn.Module) -> int:
    return sum(sum(parameter.shape) for parameter in model.parameters())


def _separate(sites: Sequence[Site]) -> list[Site]:
    """The sites without those whose rows or columns belong to an earlier one already."""
    taken: dict[tuple[str, bool], Tensor] = {}
    chosen: list[Site] = []
    for site in sites:
        if site.rerouted:  # whole layers, whose rows and columns other sites may divide
            chosen.append(site)
            continue
        claims = [
            ((name, is_row), groups >= 0)
            for is_row, layers in ((True, {**site.writers, **site.between}), (False, site.readers))
            for name, groups in layers.items()
        ]
        if any(key in taken and bool((taken[key] & own).any()) for key, own in claims):
            continue
        for key, own in claims:
            taken[key] = taken[key] | own if key in taken else own
        chosen.append(site)
    return chosen


def _equations(
    model: nn.Module,
    sites: Sequence[Site],
    shapes: Mapping[str, Shape],
    layers: Mapping[str, Shape],
) -> list[Equation]:
    """An equation for each size of a stored tensor that depends on the groups of sites."""
    check_resizable(model, sites)
    firsts = _firsts(model, sites)
    padded = {name for name in layers if _is_padded(model, name)}
    of_layers = _of_layers(sites, layers, firsts, padded)
    found = [equation for equation in of_layers if equation.per_group]
    others: set[int] = set()  # sites of tensors that differ in more than their groups
    for name, dims in _of_parameters(model, sites, firsts).items():
        stored = shapes.get(name)
        if stored is None:
            continue
        own = [
            Equation(name, stored, built, size, per_group)
            for (built, per_group), size in zip(dims, stored, strict=False)
        ]
        fits = len(stored) == len(dims) and all(
            e.size <= e.built if e.per_group else e.size == e.built for e in own
        )
        found += [equation for equation in own if equation.per_group]
        if not fits:
            others |= {i for equation in own for i in equation.per_group}
    return [equation for equation in found if others.isdisjoint(equation.per_group)]


def _firsts(model: nn.Module, sites: Sequence[Site]) -> list[int]:
    """By site, the first of those in the same modules that lose equally many groups.

    They have one unknown number, as the experts that one parameter holds.
    """
    known: dict[tuple[str, frozenset[str]], int] = {}
    return [
        known.setdefault((site.even, frozenset(_owners(model, site))), i) if site.even else i
        for i, site in enumerate(sites)
    ]


def _is_padded(model: nn.Module, layer: str) -> bool:
    """Whether a stored layer has rows of zeros, as the gates of sparse recurrent networks."""
    owner, inside = owner_of(model, layer)
    return isinstance(model.get_submodule(owner), nn.RNNBase) and not inside.startswith("hr")


def _of_layers(
    sites: Sequence[Site],
    layers: Mapping[str, Shape],
    firsts: Sequence[int],
    padded: Collection[str] = (),
) -> Iterable[Equation]:
    """The equations of rows and columns of layers of the unrolled model; of some only columns."""
    for name, shape in layers.items():
        for dim in (1,) if name in padded else (0, 1):
            equation = Equation(name, shape, 0, shape[dim])
            for i, site in enumerate(sites):
                groups = (site.readers if dim else site.writers).get(name)
                if groups is not None and not site.rerouted:
                    equation.built = len(groups)
                    part = int((groups >= 0).sum()) // site.groups
                    first = firsts[i]
                    equation.per_group[first] = equation.per_group.get(first, 0) + part
            yield equation


def _of_parameters(
    model: nn.Module, sites: Sequence[Site], firsts: Sequence[int]
) -> dict[str, list[tuple[int, dict[int, int]]]]:
    """By parameter, for each dimension its size, and by the index of a site the part of a group.

    One group of a site is taken out of a copy without weights, and the shapes are compared. Sites
    that change no common module are taken out of one copy; so are those of one unknown number.
    """
    owners = [_owners(model, site) for site in sites]
    everything = {site.name: torch.arange(site.groups) for site in sites}
    full = hollow(model)
    resize_(full, everything, sites)
    whole = _shapes(full)
    found: dict[str, list[tuple[int, dict[int, int]]]] = {
        name: [(size, {}) for size in shape] for name, shape in whole.items()
    }
    waiting = sorted(set(firsts))
    while waiting:
        by_owner: dict[str, int] = {}
        for i in waiting:
            if owners[i].isdisjoint(by_owner):
                by_owner.update(dict.fromkeys(owners[i], i))
        chosen = set(by_owner.values())
        waiting = [i for i in waiting if i not in chosen]
        smaller = {
            site.name: torch.arange(site.groups - (firsts[i] in chosen))
            for i, site in enumerate(sites)
        }
        part = hollow(model)
        resize_(part, smaller, sites)
        for name, shape in _shapes(part).items():
            for dim, size in enumerate(shape):
                if size != whole[name][dim]:
                    site = by_owner[_above(name, by_owner)]
                    found[name][dim][1][site] = whole[name][dim] - size
    return found


def _owners(model: nn.Module, site: Site) -> set[str]:
    """The modules that a site changes."""
    return {owner_of(model, n)[0] for n in (*site.writers, *site.readers, *site.between)}


def _above(name: str, owners: Mapping[str, int]) -> str:
    """Which of some modules holds a parameter."""
    while name not in owners:
        name = name.rpartition(".")[0]
    return name


def _solve(sites: Sequence[Site], equations: Sequence[Equation]) -> dict[int, int]:
    """How many groups of each site are removed, as far as the equations determine it."""
    removed: dict[int, int] = {}
    left = list(equations)
    while True:
        waiting: list[Equation] = []
        for equation in left:
            unknown = [i for i in equation.per_group if i not in removed]
            missing = equation.built - equation.size
            missing -= sum(n * removed.get(i, 0) for i, n in equation.per_group.items())
            if not unknown:
                if missing:
                    raise InvalidFileError(_contradiction(equation, sites, removed))
            elif len(unknown) == 1 or missing == 0:
                for i in unknown:
                    removed[i] = _whole(equation, sites[i], equation.per_group[i], missing)
            else:
                waiting.append(equation)
        if not waiting:
            return removed
        if len(waiting) == len(left):
            names = [sites[i].name for i in waiting[0].per_group if i not in removed]
            raise InvalidFileError(
                f"tensor {waiting[0].tensor!r} is {_dims(waiting[0].stored)}: how much of "
                f"{' and '.join(names[:2])} remains cannot be told"
            )
        left = waiting


def _whole(equation: Equation, site: Site, per_group: int, missing: int) -> int:
    """`missing` as a number of groups of a site, of which one remains."""
    count, rest = divmod(missing, per_group)
    if rest or not 0 <= count < site.groups:
        raise InvalidFileError(
            f"tensor {equation.tensor!r} is {_dims(equation.stored)}, by its config "
            f"{equation.built}: that leaves no whole {site.kind}s of {site.name}, "
            f"which has {site.groups} of {per_group}"
        )
    return count


def _contradiction(equation: Equation, sites: Sequence[Site], removed: Mapping[int, int]) -> str:
    parts = (f"{sites[i].groups - removed[i]} {sites[i].kind}s" for i in equation.per_group)
    size = equation.built - sum(n * removed[i] for i, n in equation.per_group.items())
    return (
        f"tensor {equation.tensor!r} is {_dims(equation.stored)}, other tensors leave "
        f"{' and '.join(parts)}, which are {size} features"
    )


def _dims(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"
