"""save: a model with sparse layers -> a package folder. Same input on the same
processor with the same number of threads, same bytes."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sparse_engine import _core
from sparse_engine.backends import CPU
from sparse_engine.convert.census import census
from sparse_engine.convert.report import SparsifyReport, skipped_share
from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.formats import Format
from sparse_engine.formats.checks import dtype_name
from sparse_engine.io.companions import Companion, write_companions
from sparse_engine.io.folder import check_free, new_folder
from sparse_engine.io.hugging import empty_model, model_class, read_config
from sparse_engine.io.manifest import (
    MANIFEST,
    VERSION,
    WEIGHTS,
    ChoiceEntry,
    FileEntry,
    LayerEntry,
    Machine,
    Manifest,
    TensorEntry,
    stored_as,
)
from sparse_engine.io.model_files import CONFIG, Files, companions_of
from sparse_engine.io.package import Progress, is_package, open_package
from sparse_engine.io.skeleton import fit_as_stored_, fold_as_stored_, state_of
from sparse_engine.io.tensorfile import parse_json, write_tensors
from sparse_engine.nn import SparseLinear

RECIPE = "pruning.json"


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    report: SparsifyReport | None = None,
    recipe: Mapping[str, Any] | None = None,
    source: str | Path | None = None,
    progress: Progress | None = None,
    files: Files | None = None,
) -> Path:
    """Write `model` to a new folder; returns its path.

    report: from `sparsify_`, for what was measured and why each format was chosen.
    recipe: how the weights were pruned, JSON-able; by default that of `source`, if it has one.
    source: the Hugging Face folder that the model came from; config and tokenizer files are copied
    from it; options that changed in `model.config` since are written as they are now. Without it
    the config is written from `model.config`, if there is one.
    progress: called as (done, total, tensor name).
    files: written in place of files of `source`; None for one that is left out.

    A transformers model is loaded again by `load(folder)`; any other module by
    `load(folder, model=...)`. The folder appears only when it is complete. Raises UsageError if it
    exists, or if the model holds what a package cannot, and SparseEngineError if the disk is full.

    >>> report = se.sparsify_(model, "csr"); se.save(model, "out", report=report, source=folder)
    """
    target = Path(folder)
    check_free(target)
    contents = _collect(model)
    architecture = architecture_of(model)
    companions = _companions(model, source, files, architecture)
    skipped = skipped_share(census(model), dict(model.named_modules()))
    recorded = _recipe(recipe, source)
    return write_package(
        target, contents, architecture, companions, recorded, report, skipped, progress
    )


def write_package(
    target: Path,
    contents: Contents,
    architecture: str | None,
    files: dict[Companion, bytes],
    recipe: dict[str, Any] | None,
    report: SparsifyReport | None,
    skipped: float,
    progress: Progress | None,
) -> Path:
    """Write a package, and read it back; returns its path.

    Args:
        target: the folder to write.
        contents: layers and tensors.
        architecture: name of the transformers class; None for other modules.
        files: config and tokenizer files.
        recipe: how the weights were pruned.
        report: what was measured.
        skipped: share of the multiply-adds that the sparse layers skip.
        progress: called as (done, total, tensor name).
    """
    draft = Manifest(
        sha256="",
        package_version=VERSION,
        library_version=_library_version(),
        source="transformers" if architecture else "torch",
        architecture=architecture,
        files=tuple(_file(name, data) for name, data in files.items()),
        tensors=(),
        layers=tuple(contents.layers.values()),
        recipe=recipe,
        machine=_machine() if report else None,
        choices=_choices(report),
    )
    with new_folder(target) as folder_now:
        tensors = list(contents.tensors.items())
        digests = write_tensors(folder_now / WEIGHTS, tensors, progress)
        entries = tuple(
            TensorEntry(
                name=name,
                dtype=dtype_name(tensor.dtype),  # type: ignore[arg-type]
                shape=tuple(tensor.shape),
                sha256=digests[name],
                aliases=tuple(contents.aliases[name]),
            )
            for name, tensor in tensors
        )
        manifest = draft.model_copy(update={"tensors": entries, "skipped": skipped})
        (folder_now / MANIFEST).write_bytes(manifest.to_bytes())
        write_companions(folder_now, files)
        _read_back(folder_now, target, files, architecture)
    return target


@dataclass
class Contents:
    """What goes into a package: tensors in module order, and the further names of each."""

    layers: dict[int, LayerEntry] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor
        self.aliases[name] = []

    def add_layer(self, path: str, layer: SparseLinear) -> None:
        seen = self.layers.get(id(layer))
        if seen is not None:
            aliases = (*seen.aliases, path)
            self.layers[id(layer)] = seen.model_copy(update={"aliases": aliases})
            return
        stored = _stored(layer)
        self.layers[id(layer)] = _layer(path, layer, stored)
        for name, tensor in stored.tensors().items():
            self.add(f"{path}.{name}", tensor)
        if isinstance(layer.bias, Tensor):
            self.add(f"{path}.bias", layer.bias.float())


def _collect(model: nn.Module) -> Contents:
    """Everything that a package of `model` holds; tied parameters and shared layers once."""
    if isinstance(model, SparseLinear):
        raise UsageError("the model is a single SparseLinear: wrap it in nn.Sequential to save it")
    state = Contents()
    first: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseLinear):
            state.add_layer(path, module)
            continue
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            kind = type(module).__name__
            raise UsageError(f"{path}: {kind} keeps extra state, which a package cannot hold")
        for key, tensor in state_of(module):
            name = f"{path}.{key}" if path else key
            known = first.setdefault(id(tensor), name)
            if known == name:
                state.add(name, tensor)
            else:
                state.aliases[known].append(name)
    return state


def _stored(layer: SparseLinear) -> Format:
    dtype = dtype_name(layer.values.dtype)
    dtype = (
        "float32" if dtype == "float16" else dtype
    )  # which packages do not have, since CPUs don't
    kinds = stored_as(layer.spec, dtype)
    if kinds[0] is layer.spec.format:
        return layer.to_format().to("cpu")
    if type(layer.packed) in kinds:
        return layer.packed.to("cpu")
    # What a GPU or only some processors read is no kind of file. Integers and scales are kept.
    exact = dtype == "int8" and CPU.holds(layer.packed)
    packed = layer.packed if exact else layer.to_format()
    return kinds[0].from_format(packed.to("cpu"), getattr(torch, dtype))


def _layer(path: str, layer: SparseLinear, stored: Format) -> LayerEntry:
    return LayerEntry(
        name=path,
        format=layer.format,
        stored=stored.name,  # type: ignore[arg-type]
        params=stored.params(),
        shape=stored.shape,
        dtype=dtype_name(stored.dtype),  # type: ignore[arg-type]
        bias=None if layer.bias is None else f"{path}.bias",
        sparsity=stored.sparsity,
    )


def architecture_of(model: nn.Module) -> str | None:
    """Name of the transformers class of `model`, if it is one that `load` can rebuild."""
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return None
    name = type(model).__name__
    own = sys.modules.get("sparse_engine.models.rnn")
    known = getattr(transformers, name, None), own and own.MODELS.get(name)
    return name if type(model) in known else None


def _companions(
    model: nn.Module, source: str | Path | None, files: Files | None, architecture: str | None
) -> dict[Companion, bytes]:
    found = companions_of(model, source, files)
    if architecture and CONFIG not in found:
        if source is not None:
            raise UsageError(f"source {source} has no {CONFIG}")
        config: Any = model.config
        found[CONFIG] = config.to_json_string().encode()
    return found


def _file(name: Companion, data: bytes) -> FileEntry:
    return FileEntry(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def recipe_of(source: Path) -> dict[str, Any] | None:
    """How the weights of a folder were pruned, if it says so."""
    if is_package(source):
        return open_package(source).manifest.recipe
    path = source / RECIPE
    if not path.is_file():
        return None
    return _without_pictures(parse_json(path.read_bytes(), str(path)))


def _without_pictures(recipe: dict[str, Any]) -> dict[str, Any]:
    """A report without what only its page shows: texts of examples, and large density maps."""
    kept = {key: value for key, value in recipe.items() if key != "examples"}
    if isinstance(layers := kept.get("layers"), list):
        kept["layers"] = [
            {key: value for key, value in row.items() if key != "density"}
            if isinstance(row, dict)
            else row
            for row in layers
        ]
    return kept


def _recipe(recipe: Mapping[str, Any] | None, source: str | Path | None) -> dict[str, Any] | None:
    """What was asked to be noted, or what `source` has noted itself."""
    if recipe is None:
        return None if source is None else recipe_of(Path(source))
    try:
        return json.loads(json.dumps(dict(recipe), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"recipe is not plain JSON: {error}") from None


def _choices(report: SparsifyReport | None) -> tuple[ChoiceEntry, ...]:
    rows: Sequence[Any] = report.rows if report else ()
    keys = ("name", "format", "kernel", "reason", "times_us")
    try:
        return tuple(ChoiceEntry(**{key: getattr(row, key) for key in keys}) for row in rows)
    except ValidationError as error:
        raise UsageError(f"report: {error.errors()[0]['msg']}") from None


def _machine() -> Machine:
    return Machine(cpu=_core.cpu_name(), isa=_core.active_isa())


def _library_version() -> str:
    from sparse_engine import __version__

    return __version__


def _read_back(
    draft: Path, target: Path, files: dict[Companion, bytes], architecture: str | None
) -> None:
    """Open what was written and, for transformers, compare it with what config.json describes."""
    try:
        package = open_package(draft, keeps_pages=False)
        if architecture:
            plain = parse_json(files["config.json"], "config.json")
            cls = model_class(plain, architecture)
            model = empty_model(cls, read_config(plain), sys.maxsize, buffers=False)
            fold_as_stored_(model, package)
            fit_as_stored_(model, package)
    except InvalidFileError as error:
        text = str(error).replace(str(draft), str(target))
        raise UsageError(f"the model cannot be packed: {text}") from None
