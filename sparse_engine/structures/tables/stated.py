"""Units of linear layers and filters of Conv1d whose readers are stated.

The forward pass of a model that is no nn.Sequential is code, which no table can read. So the option
`readers` of `Unit` and `Filter` states which modules read what a layer computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.modules.eligible import skip_reason
from sparse_engine.modules.linears import is_linear
from sparse_engine.structures.chains import (
    OF_CHANNELS,
    chains,
    inputs_of,
    is_layer,
    outputs_of,
)
from sparse_engine.structures.site import Site

Stated = Mapping[str, Sequence[str]]
GLOB = "*?["


def expanded(model: nn.Module, stated: Stated) -> dict[str, Sequence[str]]:
    """The statements with patterns of layers, as "convs.*", replaced by the names that match.

    Raises:
        UsageError: if a pattern matches no linear layer or Conv1d, or there is no such module.
    """
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if is_layer(module)]
    found: dict[str, Sequence[str]] = {}
    for source, readers in stated.items():
        matching = [source]
        if any(character in source for character in GLOB):
            matching = [name for name in names if fnmatchcase(name, source)]
        elif source not in modules:
            raise UsageError(f"readers of {source!r}: there is no module of this name")
        if not matching:
            raise UsageError(f"readers of {source!r}: no linear layer or Conv1d has such a name")
        found.update(dict.fromkeys(matching, readers))
    return found


def sites(model: nn.Module, kinds: Sequence[str], stated: Stated) -> Iterator[Site]:
    """A site for each layer with stated readers.

    Args:
        model: any module.
        kinds: text forms of structures.
        stated: by linear layer or Conv1d, the modules that read all features that it computes. A
            module that several layers name reads their features side by side, in the order of the
            statements. Norms and PReLU may be among them, which have values for each feature.

    Raises:
        UsageError: if a name is wrong, a module cannot lose features, or sizes do not fit.
    """
    modules = dict(model.named_modules())
    known = {chain.first: chain for chain in chains(model)}
    readers: dict[str, list[str]] = {}
    for source, names in stated.items():
        kind = "filter" if type(modules[source]) is nn.Conv1d else "unit"
        if kind not in kinds:
            raise UsageError(f"readers of {source}: it has {kind}s; state them with {kind}(...)")
        if source in known and (known[source].last or known[source].broken_by):
            after = known[source].last or known[source].broken_by
            raise UsageError(f"readers of {source}: {after} is known to follow; leave it out")
        for name in names:
            readers.setdefault(name, []).append(source)
    for source in stated:
        _check(source, modules[source])
    of_reader = {name: _inputs(modules, name, sources) for name, sources in readers.items()}
    for source, names in stated.items():
        columns: dict[str, Tensor] = {}
        between = dict(known[source].between) if source in known else {}
        for name in names:
            of = columns if is_layer(modules[name]) else between
            of.update(of_reader[name][source])
        if not columns:
            raise UsageError(f"readers of {source}: no linear layer or Conv1d is among them")
        kind = "filter" if type(modules[source]) is nn.Conv1d else "unit"
        writers = outputs_of(source, modules[source])
        yield Site(source, kind, _count(source, modules[source]), writers, columns, between)


def _inputs(
    modules: Mapping[str, Any], name: str, sources: Sequence[str]
) -> dict[str, dict[str, Tensor]]:
    """By source, and by layer of a module, which feature of the source each column reads."""
    module = modules.get(name)
    if module is None:
        raise UsageError(f"readers of {sources[0]}: there is no module {name!r}")
    _check(name, module)
    counts = [_count(source, modules[source]) for source in sources]
    if is_layer(module):
        layers = inputs_of(name, module)
    else:
        layers = {name: torch.arange(getattr(module, "num_features", 0) or module.num_parameters)}
    (layer, features), *_ = layers.items()
    width = int(features.max()) + 1
    each, rest = divmod(width, sum(counts))
    flattened = is_linear(module) and all(type(modules[s]) is nn.Conv1d for s in sources)
    if rest or not each or (each > 1 and not flattened):
        raise UsageError(
            f"readers of {sources[0]}: {name} reads {width} features, but {' and '.join(sources)} "
            f"{'have' if len(sources) > 1 else 'has'} {sum(counts)}"
        )
    found: dict[str, dict[str, Tensor]] = {}
    start = 0
    for source, count in zip(sources, counts, strict=True):
        own = features // each - start
        found[source] = {layer: own.where((own >= 0) & (own < count), -1)}
        start += count
    return found


def _count(name: str, module: Any) -> int:
    """How many features a layer computes."""
    return sum(map(len, outputs_of(name, module).values()))


def _check(name: str, module: Any) -> None:
    """Raise UsageError unless the module can lose features."""
    if not is_layer(module) and type(module) not in OF_CHANNELS:
        raise UsageError(
            f"readers: {name} is a {type(module).__name__}, which cannot lose features"
        )
    if getattr(module, "groups", 1) > 1:
        raise UsageError(f"readers: {name} has {module.groups} groups of channels")
    if reason := skip_reason(module, type(module)):
        raise UsageError(f"readers: {name} {reason}")
