"""Units of recurrent networks and cells.

A unit of a network is one feature of the state of a layer in one direction: a row of every gate of
ih and hh, a column of its own hh, and a column of each ih of the next layer. With a projection hr
the units inside are read by hr alone, and its outputs are units of their own. The last layer is
read by modules outside of the network, which no module lists: for models of this library they are
known, for all others the option `readers` of `Unit` states them.

A network has one hidden_size and one proj_size, so that all of its layers and directions lose
equally many units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from sparse_engine.errors import UsageError
from sparse_engine.modules.linears import is_linear, weight_of
from sparse_engine.structures.site import Site, Size

NETWORKS = (nn.LSTM, nn.GRU, nn.RNN)
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
GATES = {"LSTM": 4, "GRU": 3, "LSTMCell": 4, "GRUCell": 3}
TIED = "its output is the embedding, which would have to lose the same features"


@dataclass(frozen=True)
class Outside:
    """What reads the last layer of a network, or a cell.

    Attributes:
        layers: names of linear layers, and of the matrices of networks and cells.
        sizes: modules and attributes that hold the number of features.
        refusal: why the units cannot be removed, or "".
    """

    layers: tuple[str, ...] = ()
    sizes: tuple[tuple[str, str], ...] = ()
    refusal: str = ""


def sites(model: nn.Module, stated: Mapping[str, Sequence[str]]) -> Iterator[Site]:
    """The units of all recurrent networks and cells; those without known readers have a refusal.

    Args:
        model: any module.
        stated: by network or cell, the modules that read its outputs.

    Raises:
        UsageError: if a name in `stated` is wrong, or a module that it names reads another number
            of features.
    """
    modules = dict(model.named_modules())
    known: dict[str, Outside] = {}
    for name, module in modules.items():
        known.update(_of_library(name, module))
    for name in stated:
        if type(modules.get(name)) not in (*NETWORKS, *CELLS):
            raise UsageError(
                f"readers of {name!r}: a {type(modules[name]).__name__} has no units or filters; "
                "name a linear layer, a Conv1d, or a recurrent network or cell"
            )
        if name in known:
            raise UsageError(f"unit: what reads {name} is known; leave it out of readers")
    for name, module in modules.items():
        if type(module) not in (*NETWORKS, *CELLS):
            if _has_classifier(module):
                yield from _inner_units(name, module)
            continue
        outside = known.get(name) or Outside(refusal=_unknown(name))
        if name in stated:
            outside = _outside(modules, name, stated[name])
        yield from (_of_network if type(module) in NETWORKS else _of_cell)(name, module, outside)


def _of_network(name: str, network: Any, outside: Outside) -> Iterator[Site]:
    hidden, width = network.hidden_size, network.proj_size or network.hidden_size
    suffixes = ("", "_reverse")[: 1 + network.bidirectional]
    sizes = tuple(Size(*size, len(suffixes)) for size in outside.sizes)
    for layer in range(network.num_layers):
        above = tuple(_below(name, f"ih_l{layer + 1}{other}") for other in suffixes)
        if layer + 1 == network.num_layers:
            above = outside.layers
        for direction, suffix in enumerate(suffixes):
            ih, hh, hr = (_below(name, f"{part}_l{layer}{suffix}") for part in ("ih", "hh", "hr"))
            rows = torch.arange(hidden).repeat(gates_of(network))
            # Both directions are read one after the other.
            columns = torch.full((width * len(suffixes),), -1)
            columns[direction * width : (direction + 1) * width] = torch.arange(width)
            outputs = Site(
                hh,
                "unit",
                width,
                {ih: rows, hh: rows},
                {hh: torch.arange(width)} | dict.fromkeys(above, columns),
                sizes=sizes,
                even=_below(name, "hidden_size"),
                refusal=outside.refusal,
            )
            if network.proj_size:
                inside = torch.arange(hidden)
                yield replace(outputs, groups=hidden, readers={hr: inside}, sizes=(), refusal="")
                outputs = replace(
                    outputs,
                    name=hr,
                    writers={hr: torch.arange(width)},
                    even=_below(name, "proj_size"),
                )
            yield outputs


def _of_cell(name: str, cell: Any, outside: Outside) -> Iterator[Site]:
    ih, hh = _below(name, "ih"), _below(name, "hh")
    units = torch.arange(cell.hidden_size)
    rows = units.repeat(gates_of(cell))
    yield Site(
        hh,
        "unit",
        len(units),
        {ih: rows, hh: rows},
        dict.fromkeys((hh, *outside.layers), units),
        sizes=tuple(Size(*size, 1) for size in outside.sizes),
        refusal=outside.refusal,
    )


def gates_of(module: nn.Module) -> int:
    """How many rows of ih compute one unit of a network or cell."""
    return GATES.get(type(module).__name__, 1)


def _outside(modules: Mapping[str, nn.Module], name: str, readers: Sequence[str]) -> Outside:
    """What reads a network or cell, from the names of the modules that do."""
    source: Any = modules[name]
    width = getattr(source, "proj_size", 0) or source.hidden_size
    width *= 2 if getattr(source, "bidirectional", False) else 1
    layers: list[str] = []
    sizes: list[tuple[str, str]] = []
    for reader in readers:
        module: Any = modules.get(reader)
        if module is None:
            raise UsageError(f"unit: there is no module {reader!r} that could read {name}")
        if is_linear(module):
            features, parts = weight_of(module).shape[1], [""]
        elif type(module) in NETWORKS:
            features, parts = module.input_size, ["ih_l0", "ih_l0_reverse"]
            parts = parts[: 1 + module.bidirectional]
        elif type(module) in CELLS:
            features, parts = module.input_size, ["ih"]
        elif isinstance(module, nn.AdaptiveLogSoftmaxWithLoss):
            features = module.in_features
            parts = ["head", *(f"tail.{i}.0" for i in range(module.n_clusters))]
            sizes.append((reader, "in_features"))
        else:
            raise UsageError(f"unit: {reader}, a {type(module).__name__}, cannot lose columns")
        if features != width:
            raise UsageError(
                f"unit: {reader} reads {features} features, but {name} has {width} outputs"
            )
        layers += [_below(reader, part) if part else reader for part in parts]
    return Outside(tuple(layers), tuple(sizes))


def _of_library(name: str, module: Any) -> Iterator[tuple[str, Outside]]:
    """What reads the network of a model of sparse_engine.models.rnn, by the network's name."""
    if type(module).__module__ != "sparse_engine.models.rnn":
        return
    modules = dict(module.named_modules())
    if _has_classifier(module):
        outside = _outside(modules, "rnn", [_chain(module)[0]])
    elif module.config.cutoffs:
        outside = _outside(modules, "rnn", ["softmax"])
    elif module.config.tie_word_embeddings:
        outside = Outside(refusal=f"{_below(name, 'rnn')}: {TIED}")
    else:
        outside = _outside(modules, "rnn", ["lm_head"])
    layers = tuple(_below(name, layer) for layer in outside.layers)
    sizes = tuple((_below(name, part), attribute) for part, attribute in outside.sizes)
    yield _below(name, "rnn"), replace(outside, layers=layers, sizes=sizes)


def _has_classifier(module: nn.Module) -> bool:
    cls = type(module)
    return cls.__module__ == "sparse_engine.models.rnn" and cls.__name__ in (
        "RnnForTokenClassification",
        "RnnForSequenceClassification",
    )


def _chain(model: Any) -> list[str]:
    """The linear layers behind the network of a tagger or classifier, one after another."""
    return [*(f"inner.{i}" for i in range(len(model.inner))), "classifier"]


def _inner_units(name: str, model: Any) -> Iterator[Site]:
    """The units between the linear layers of a tagger or classifier."""
    for writer, reader in pairwise(_chain(model)):
        units = torch.arange(model.get_submodule(writer).weight.shape[0])
        writer, reader = _below(name, writer), _below(name, reader)
        yield Site(writer, "unit", len(units), {writer: units}, {reader: units})


def _below(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _unknown(name: str) -> str:
    if not name:
        return "the outputs of the network are those of the model, which keep their width"
    return (
        f"what reads the outputs of {name} is not known; state the layers as "
        f"unit(readers='{name}: fc'), or leave it with ignore"
    )
