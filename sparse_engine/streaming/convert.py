"""Converts a checkpoint that need not fit into memory to a package."""

from __future__ import annotations

import copy
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from sparse_engine import _core
from sparse_engine.config import SparseConfig
from sparse_engine.convert.census import Census
from sparse_engine.convert.report import Left, SparsifyReport, SparsifyRow
from sparse_engine.convert.sparsify import sparsify_
from sparse_engine.errors import InvalidFileError
from sparse_engine.io.folder import check_free
from sparse_engine.io.model_files import read_companions
from sparse_engine.io.package import Package, Progress, open_package
from sparse_engine.io.skeleton import state_of
from sparse_engine.io.writer import Contents, architecture_of, recipe_of, save, write_package
from sparse_engine.modules.linears import is_linear
from sparse_engine.streaming.checkpoint import Checkpoint
from sparse_engine.streaming.counting import check_space, count_zeros
from sparse_engine.streaming.draft import Draft, open_draft
from sparse_engine.streaming.journal import OnModule
from sparse_engine.streaming.plan import check_unshared, find_streamed, is_inside
from sparse_engine.streaming.request import conversion_request
from sparse_engine.streaming.spill import Float32File
from sparse_engine.streaming.weights import Weights

BLOCK = "block"
"""Name of the module of a stack in its part."""
OUTSIDE = "outside of the stacks, which alone are streamed"
BYTES = 8
"""Upper estimate of the bytes of a stored non-zero."""


def convert_checkpoint(
    checkpoint: Checkpoint,
    out: str | Path,
    config: SparseConfig | str | None = None,
    progress: Progress | None = None,
    on_module: OnModule | None = None,
) -> SparsifyReport:
    """Write a package of a checkpoint, with one module of its stacks in memory at a time.

    The package holds what `sparsify_` followed by `save` makes, with one difference: linear layers
    outside of the stacks stay dense. Each module is first written to OUT.unfinished as a package of
    its own. After an interrupt or a crash the same call continues with the next module.

    Args:
        checkpoint: as `open_checkpoint` returns it.
        out: the folder to write; must not exist.
        config: how to store the weights.
        progress: called with (done, total, name) while the package is written.
        on_module: called with (done, total, seconds) after every module of the stacks.

    Returns:
        A row for each layer.

    Raises:
        UsageError: an argument cannot be used, an unfinished run had others, or the disk is full.
        UnsupportedModelError: the model cannot be streamed.
        InvalidFileError: a shard is damaged.

    Example:
        convert_checkpoint(open_checkpoint("pruned"), "package", "csr")
    """
    target, config = Path(out), SparseConfig.of(config)
    check_free(target)
    model = checkpoint.model
    names = find_streamed(model)
    check_unshared(model, names)
    files = read_companions(checkpoint.folder)
    counted = count_zeros(checkpoint, checkpoint.stored.__getitem__)
    kept = sum(row.parameters for row in counted.rows) - sum(row.zeros for row in counted.rows)
    check_space(target, 2 * BYTES * kept, "converting", "the package, and the parts of it")
    with open_draft(target, conversion_request(checkpoint, config, _core.cpu_name())) as draft:
        rows = _write_parts(checkpoint, names, config, draft, on_module)
        parts = {name: open_package(_part(draft, i), keeps_pages=False)
                 for i, name in enumerate(names)}  # fmt: skip
        contents, outside = _contents(checkpoint, parts, draft)
        report = _report(model, rows, _as_stored(counted, contents), names)

        def written(done: int, total: int, name: str) -> None:
            for part in parts.values():
                part.drop_pages()
            outside.drop_pages()
            if progress is not None:
                progress(done, total, name)

        recipe = recipe_of(checkpoint.folder)
        architecture = architecture_of(model)
        write_package(
            target, contents, architecture, files, recipe, report, report.skipped, written
        )
        shutil.rmtree(draft.path, ignore_errors=True)
    return report


def _part(draft: Draft, number: int) -> Path:
    """The package of one module."""
    return draft.states / str(number)


def _write_parts(
    checkpoint: Checkpoint,
    names: list[str],
    config: SparseConfig,
    draft: Draft,
    on_module: OnModule | None,
) -> list[SparsifyRow]:
    """Write the packages of the modules that have none yet; returns the rows of all."""
    model, weights = checkpoint.model, Weights(checkpoint, names)
    rows = _rows(draft)
    for i, name in enumerate(names[len(rows) :], len(rows)):
        started = time.perf_counter()
        shutil.rmtree(_part(draft, i), ignore_errors=True)
        empty = copy.deepcopy(model.get_submodule(name))
        with weights.loaded(name) as module:
            part = nn.ModuleDict({BLOCK: module})
            found = sparsify_(part, config).rows
            save(part, _part(draft, i))
            model.set_submodule(name, empty)
            del part, module
        prefixed = (replace(r, name=name + r.name.removeprefix(BLOCK)) for r in found)
        rows.append(list(prefixed))
        draft.save({"rows": [[asdict(row) for row in of_module] for of_module in rows]})
        if on_module is not None:
            on_module(i + 1, len(names), time.perf_counter() - started)
    return [row for of_module in rows for row in of_module]


def _rows(draft: Draft) -> list[list[SparsifyRow]]:
    """The rows of the modules that are finished."""
    try:
        return TypeAdapter(list[list[SparsifyRow]]).validate_python(draft.state.get("rows", []))
    except ValidationError:
        raise InvalidFileError(f"{draft.path}: its state is damaged: remove the folder") from None


def _contents(
    checkpoint: Checkpoint, parts: dict[str, Package], draft: Draft
) -> tuple[Contents, Float32File]:
    """Everything that the package holds, as views of files."""
    contents = Contents()
    for name, part in parts.items():
        for layer in part.manifest.layers:
            moved = layer.model_copy(
                update={
                    "name": _renamed(layer.name, name),
                    "bias": layer.bias and _renamed(layer.bias, name),
                    "aliases": tuple(_renamed(alias, name) for alias in layer.aliases),
                }
            )
            contents.layers[id(layer)] = moved
        for entry in part.manifest.tensors:
            contents.add(_renamed(entry.name, name), part.tensors[entry.name])
            aliases = [_renamed(alias, name) for alias in entry.aliases]
            contents.aliases[_renamed(entry.name, name)] = aliases
    first: dict[int, str] = {}
    for path, module in checkpoint.model.named_modules(remove_duplicate=False):
        if is_inside(path, list(parts)):
            continue
        for key, tensor in state_of(module):
            name = f"{path}.{key}" if path else key
            first_name = first.setdefault(id(tensor), name)
            if first_name == name:
                contents.aliases[name] = []
            else:
                contents.aliases[first_name].append(name)
    outside = Float32File(draft.states / "outside")
    stored = {
        name: next(checkpoint.stored[n] for n in (name, *contents.aliases[name])
                   if n in checkpoint.stored)
        for name in first.values()
    }  # fmt: skip
    for name, tensor in outside.write(stored).items():
        contents.tensors[name] = tensor
    return contents, outside


def _renamed(name: str, module: str) -> str:
    """A name of a part, in the model."""
    return module + name.removeprefix(BLOCK)


def _as_stored(counted: Census, contents: Contents) -> Census:
    """The counts with the zeros that sparse layers have in the package, where int8 makes more."""
    shares = {entry.name: entry.sparsity for entry in contents.layers.values()}
    rows = (
        replace(row, zeros=round(shares[row.name] * row.weights)) if row.name in shares else row
        for row in counted.rows
    )
    return Census(tuple(rows))


def _report(
    model: nn.Module, rows: list[SparsifyRow], counted: Census, names: list[str]
) -> SparsifyReport:
    """The rows of all layers, those outside of the stacks included, and the shares."""
    done = {row.name for row in rows}
    linears = {name for name, module in model.named_modules() if is_linear(module)}
    left: list[Left] = []
    for row in counted.rows:
        if is_inside(row.name, names) or not row.weights:
            continue
        if row.name in linears:
            module: Any = model.get_submodule(row.name)
            out, inputs = module.weight.shape
            size = 4 * row.weights
            zeros = row.zeros / row.weights
            rows = [
                *rows,
                SparsifyRow(row.name, (out, inputs), zeros, "dense", "", size, size, OUTSIDE),
            ]
        else:
            left.append(Left(row.name, row.kind, row.weights, OUTSIDE))
    sparse = {row.name for row in rows if row.name in done and row.format != "dense"}
    skipped = sum(
        row.multiply_adds * row.zeros / row.weights for row in counted.rows if row.name in sparse
    )
    share = skipped / counted.multiply_adds if counted.multiply_adds else 0.0
    return SparsifyReport(tuple(rows), "", tuple(left), counted.zeros_of_parameters, share)
