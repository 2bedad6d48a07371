"""inspect: what a package holds, what it saves, and which kernels it would run here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_engine import _core
from sparse_engine.backends import CPU
from sparse_engine.errors import InvalidFileError
from sparse_engine.formats import Format
from sparse_engine.formats.checks import dtype_name
from sparse_engine.io.manifest import ChoiceEntry, LayerEntry
from sparse_engine.io.package import Package, open_package
from sparse_engine.io.removed import UNSEEN, describe, recorded
from sparse_engine.io.skeleton import draft_of
from sparse_engine.ops import linear_kernel
from sparse_engine.structures import Remaining

# Tokens for which kernels are named where nothing was measured.
TOKENS = 128


@dataclass(frozen=True)
class InspectionRow:
    """One linear layer, sparse or left dense.

    bytes: on disk, bias apart; dense_bytes: of the same weight dense, in the same dtype;
    kernel: what would run here; times_us: microseconds by format and tokens, where it was packed.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    format: str
    dtype: str
    bytes: int
    dense_bytes: int
    kernel: str
    reason: str
    times_us: dict[str, dict[int, float]]


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. Bytes are of all weights, dense ones included; `rows` one a layer.

    skipped: share of the multiply-adds for one token; None in packages of before it was stored.
    removed: places that lost heads, units or other groups, words or layers.
    """

    folder: str
    architecture: str | None
    library_version: str
    rows: tuple[InspectionRow, ...]
    parameters: int
    sparsity: float
    skipped: float | None
    bytes: int
    dense_bytes: int
    machine: dict[str, str] | None
    recipe: dict[str, Any] | None
    removed: tuple[Remaining, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A line for each layer, and totals."""
        lines = [
            f"{row.name}: {row.shape[0]}x{row.shape[1]}, {row.sparsity:.1%} zeros, {row.format} "
            f"{row.dtype}, {row.bytes / 1e6:.2f} MB, dense {row.dense_bytes / 1e6:.2f}"
            f"{'; ' if row.reason else ''}{row.reason}"
            for row in self.rows
        ]
        return "\n".join([self.title(), *lines, self.totals(), self.kernels()])

    def title(self) -> str:
        """What the package is, and where its formats were chosen."""
        title = f"{self.folder}: {self.architecture or 'torch module'}"
        if self.machine:
            title += f", measured on {self.machine['cpu']} ({self.machine['isa']})"
        return title

    def kernels(self) -> str:
        """Which kernels would run here."""
        counts = Counter(row.kernel for row in self.rows if row.format != "dense")
        used = ", ".join(f"{kernel} ({count})" for kernel, count in counts.most_common())
        text = f"kernels here: {used or 'none'}"
        if self.machine and self.machine["cpu"] != _core.cpu_name():
            text += (
                f"; formats were chosen on {self.machine['cpu']}, this is {_core.cpu_name()}: "
                "convert again to choose them here"
            )
        return text

    def totals(self) -> str:
        """Layers, parameters, zeros and bytes."""
        sparse = sum(row.format != "dense" for row in self.rows)
        skipped = (
            "" if self.skipped is None else f", {self.skipped:.1%} of the multiply-adds skipped"
        )
        return (
            f"{sparse} of {len(self.rows)} layers sparse; "
            f"{self.parameters / 1e6:.1f} M parameters, {self.sparsity:.1%} of them zero{skipped}; "
            f"{self.bytes / 1e6:.1f} MB, dense {self.dense_bytes / 1e6:.1f} MB"
            f"{describe(self.removed)}"
        )


def inspect(folder: str | Path) -> Inspection:
    """Open and check a package, and say what is in it; raises InvalidFileError.

    >>> print(se.io.inspect("out"))
    """
    package = open_package(Path(folder))
    manifest = package.manifest
    choices = {choice.name: choice for choice in manifest.choices}
    groups: dict[str, list[LayerEntry]] = {}
    for entry in manifest.layers:
        groups.setdefault(_choice_name(entry.name, choices), []).append(entry)
    rows = [_row(name, group, package, choices.get(name)) for name, group in groups.items()]
    rows += _kept_dense(package)
    place: dict[str, int] = {}  # of each module, that of its first tensor
    for i, tensor in enumerate(manifest.tensors):
        parts = tensor.name.split(".")
        for end in range(1, len(parts)):
            place.setdefault(".".join(parts[:end]), i)
    rows.sort(key=lambda row: place.get(row.name, len(place)))  # the order of the model
    dense = package.dense.values()
    biases = [bias for bias in map(package.bias, manifest.layers) if bias is not None]
    shapes = [math.prod(entry.shape) for entry in manifest.layers]
    parameters = sum(t.numel() for t in (*dense, *biases)) + sum(shapes)
    zeros = sum(t.numel() - int(t.count_nonzero()) for t in dense) + sum(
        entry.sparsity * count for entry, count in zip(manifest.layers, shapes, strict=True)
    )
    size = sum(tensor.nbytes for tensor in package.tensors.values())
    saved = sum(row.dense_bytes - row.bytes for row in rows)
    return Inspection(
        folder=str(folder),
        architecture=manifest.architecture,
        library_version=manifest.library_version,
        rows=tuple(rows),
        parameters=parameters,
        sparsity=zeros / max(parameters, 1),
        skipped=manifest.skipped,
        bytes=size,
        dense_bytes=size + saved,
        machine=manifest.machine.model_dump() if manifest.machine else None,
        recipe=manifest.recipe,
        removed=_removed(package),
    )


def _removed(package: Package) -> tuple[Remaining, ...]:
    """What shapes tell, and what only the report does; of a plain module only that."""
    try:
        listed = recorded(package.manifest.recipe)
    except InvalidFileError as error:
        raise InvalidFileError(f"{package.path}: {error}") from None
    if package.manifest.source != "transformers":
        return listed
    unseen = (site for site in listed if site.kind in UNSEEN)
    return (*draft_of(package)[1].remaining, *unseen)


def _choice_name(name: str, choices: Mapping[str, ChoiceEntry]) -> str:
    """The layer that a choice was made for: `name`, or what it is a part of; else `name`."""
    parts = name.split(".")
    above = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((found for found in above if found in choices), name)


def _row(
    name: str, parts: list[LayerEntry], package: Package, choice: ChoiceEntry | None
) -> InspectionRow:
    """A row about the parts that one choice was made for: experts, groups of a convolution."""
    weights = [package.layers[part.name] for part in parts]
    times = _times(choice)
    tokens = max((count for found in times.values() for count in found), default=TOKENS)
    sizes = [math.prod(part.shape) for part in parts]
    zeros = sum(part.sparsity * size for part, size in zip(parts, sizes, strict=True))
    return InspectionRow(
        name=name,
        shape=(sum(part.shape[0] for part in parts), parts[0].shape[1]),
        sparsity=zeros / max(sum(sizes), 1),
        format=parts[0].format,
        dtype=parts[0].dtype,
        bytes=sum(weight.nbytes for weight in weights),
        dense_bytes=sum(sizes) * weights[0].dtype.itemsize,
        kernel=_kernel(weights[0], tokens),
        reason=choice.reason if choice else "",
        times_us=times,
    )


def _kept_dense(package: Package) -> list[InspectionRow]:
    """Linear layers that `sparsify_` left alone, with its reasons."""
    named = {
        name: package.tensors[entry.name]
        for entry in package.manifest.tensors
        for name in (entry.name, *entry.aliases)
    }
    rows = []
    for choice in package.manifest.choices:
        weight = named.get(f"{choice.name}.weight")
        if choice.format != "dense" or weight is None or weight.dim() != 2:
            continue
        rows.append(
            InspectionRow(
                name=choice.name,
                shape=(weight.shape[0], weight.shape[1]),
                sparsity=1 - int(weight.count_nonzero()) / max(weight.numel(), 1),
                format="dense",
                dtype=dtype_name(weight.dtype),
                bytes=weight.nbytes,
                dense_bytes=weight.nbytes,
                kernel="torch",
                reason=choice.reason,
                times_us=_times(choice),
            )
        )
    return rows


def _times(choice: ChoiceEntry | None) -> dict[str, dict[int, float]]:
    return {spec: dict(found) for spec, found in choice.times_us.items()} if choice else {}


def _kernel(weight: Format, tokens: int) -> str:
    """The kernel that runs once `weight` is loaded; a format is packed then."""
    if CPU.holds(weight):
        return linear_kernel(weight, tokens)
    one: Tensor = torch.zeros(weight.params().get("of", 1), 1, dtype=weight.dtype)
    return linear_kernel(CPU.pack(type(weight).from_dense(one.T, **weight.params())), tokens)
