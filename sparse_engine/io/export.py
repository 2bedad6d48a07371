"""export_transformers: a cut model -> a folder that transformers loads by itself.

transformers builds all layers of a model alike. Where what is left is even and the config has an
option for it, the option is changed. Elsewhere weights are padded with zeros to the shapes of the
config: rows that compute a removed group, and columns that read it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError, UnsupportedModelError, UsageError
from sparse_engine.io.checkpoint import write_weights
from sparse_engine.io.companions import write_companions
from sparse_engine.io.folder import check_free, new_folder
from sparse_engine.io.hugging import empty_model, transformers_module
from sparse_engine.io.model_files import companions_of
from sparse_engine.io.package import Progress, is_package
from sparse_engine.io.shards import StoredDtypes
from sparse_engine.io.writer import architecture_of
from sparse_engine.nn import SparseLinear
from sparse_engine.structures import STRUCTURES, Fit, Remaining, Shape, find_fit, find_sites, hollow
from sparse_engine.structures.resize import owner_of

# Options for the width of feed-forwards, by the names of all families.
WIDTHS = (
    "intermediate_size",
    "n_inner",
    "d_ff",
    "hidden_dim",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
)


@dataclass(frozen=True)
class ExportReport:
    """What `export_transformers` wrote.

    Attributes:
        folder: its path.
        options: of the config, by name: the values before and in the folder.
        padded: sites with zeros in place of removed groups.
        parameters: of the model, and of the one in the folder.
    """

    folder: str
    options: dict[str, tuple[Any, Any]]
    padded: tuple[Remaining, ...]
    parameters: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """One line."""
        changes = ", ".join(f"{name} {a} -> {b}" for name, (a, b) in self.options.items())
        parts = [f"config.json: {changes}" if changes else "config.json as it was"]
        if self.padded:
            removed: dict[str, int] = {}
            for site in self.padded:
                removed[site.kind] = removed.get(site.kind, 0) + site.groups - site.kept
            kinds = " and ".join(
                f"{count} {kind}{'s' * (count > 1)}" for kind, count in removed.items()
            )
            first, *more = (site.name for site in self.padded)
            others = f" and {len(more)} more" if more else ""
            parts.append(f"zeros in place of {kinds}, in {first}{others}")
        had, has = self.parameters
        parts.append(f"{has:,} parameters, the model has {had:,}")
        return f"{self.folder}: {'; '.join(parts)}"


def export_transformers(
    model: nn.Module,
    folder: str | Path,
    source: str | Path | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a cut model as a folder that `from_pretrained` of transformers loads.

    The loaded model computes what `model` computes. Where layers have different numbers of heads or
    units, or the config has no option for them, weights are padded with zeros; such a folder is as
    large as its config says.

    Args:
        model: dense, of a class of transformers; it is not changed.
        folder: must not exist.
        source: the folder that the model came from: tokenizer files and config.json are copied,
            with the options that changed, and floating-point tensors have the dtypes of its files.
            Without it the config is that of the model.
        progress: called as (done, total, file name).

    Raises:
        UsageError: `folder` exists, or the model is sparse, not of transformers, or changed in a
            way that its config and removed groups do not explain.
        SparseEngineError: the files cannot be written.

    Example:
        se.prune(model, 0.25, ["head", "unit"])
        print(se.export_transformers(model, "out", source="path/of/the/dense/model"))
    """
    target = Path(folder)
    check_free(target)
    if not isinstance(model, transformers_module().PreTrainedModel) or not architecture_of(model):
        raise UsageError(f"{type(model).__name__} is no model of transformers: use save")
    if any(isinstance(module, SparseLinear) for module in model.modules()):
        raise UsageError("the model holds sparse layers: densify_(model) first")
    if type(model).__module__.startswith("sparse_engine."):
        raise UsageError(f"transformers has no {type(model).__name__}: use save_checkpoint")
    state: dict[str, Tensor] = nn.Module.state_dict(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    config, fit = _best_config(model, shapes)
    before, after = model.config.to_dict(), config.to_dict()
    full = empty_model(type(model), config, sys.maxsize, buffers=True)
    _fill(full, fit, state, model)
    files = companions_of(full, source)
    dtypes = None if source is None or is_package(Path(source)) else StoredDtypes(Path(source))
    with new_folder(target) as draft:
        write_weights(full, draft, dtypes)
        if progress is not None:
            progress(1, 2, "weights")
        write_companions(draft, files)
        if progress is not None:
            progress(2, 2, "config and tokenizer")
    return ExportReport(
        str(folder),
        {key: (before.get(key), value) for key, value in after.items() if before.get(key) != value},
        fit.remaining,
        (_parameters(model), _parameters(full)),
    )


def _best_config(model: Any, shapes: Mapping[str, Shape]) -> tuple[Any, Fit]:
    """The config whose model is nearest to a cut one and nowhere smaller; and what that one lacks.

    Raises UsageError if the model is none that removed groups explain.
    """
    config = copy.deepcopy(model.config)
    built = _built(model, config)
    fit = _fit(built, shapes)
    if fit.left:
        distance = _different(built, shapes)
        for options in _candidates(built, config, fit):
            other = copy.deepcopy(config)
            for name, value in options.items():
                setattr(other, name, value)
            try:
                found = _different(_built(model, other), shapes)
            except InvalidFileError:  # no model can be built from it
                continue
            if found is not None and distance is not None and found < distance:
                config, distance = other, found
        built = _built(model, config)
        fit = _fit(built, shapes)
    fit.apply_(built)
    if wrong := [n for n, t in built.state_dict().items() if shapes.get(n) != tuple(t.shape)]:
        raise UsageError(
            f"{type(model).__name__} cannot be exported: {wrong[0]} is not what its config makes it"
        )
    return config, fit


def _built(model: nn.Module, config: Any) -> Any:
    return empty_model(type(model), copy.deepcopy(config), sys.maxsize, buffers=False)


def _fit(built: nn.Module, shapes: Mapping[str, Shape]) -> Fit:
    try:
        return find_fit(built, shapes)
    except InvalidFileError as error:
        raise UsageError(f"{type(built).__name__} cannot be exported: {error}") from None


def _different(built: nn.Module, shapes: Mapping[str, Shape]) -> int | None:
    """How many tensors have other shapes; None where one is smaller, or missing."""
    count = 0
    state = built.state_dict()
    if state.keys() != shapes.keys():
        return None
    for name, tensor in state.items():
        own, shape = tuple(tensor.shape), shapes[name]
        if len(own) != len(shape) or any(a < b for a, b in zip(own, shape, strict=True)):
            return None
        count += own != shape
    return count


def _candidates(built: nn.Module, config: Any, fit: Fit) -> Iterator[dict[str, Any]]:
    """Options that may describe what is left, smaller numbers first."""
    counts: dict[str, set[int]] = {}
    try:
        sites = find_sites(built, tuple(structure.name for structure in STRUCTURES))
    except UnsupportedModelError:
        return
    for site in sites:
        counts.setdefault(site.kind, set()).add(fit.left.get(site.name, site.groups))
    options = config.to_dict()
    for units in sorted(counts.get("unit", ())):
        for name in WIDTHS:
            if name in options:
                yield {name: units}
    for heads in sorted(counts.get("head", ())):
        if "d_kv" in options:
            yield {"num_heads": heads}
        elif "num_key_value_heads" in options:
            queries, keys = config.num_attention_heads, config.num_key_value_heads
            size = getattr(config, "head_dim", None) or config.hidden_size // queries
            yield {
                "num_key_value_heads": heads,
                "num_attention_heads": heads * (queries // keys),
                "head_dim": size,
            }


def _fill(full: Any, fit: Fit, live: Mapping[str, Tensor], model: Any) -> None:
    """Give an empty model the weights of a cut one, and zeros where groups were removed."""
    places = dict(_places(full, fit))
    empty = full.state_dict()
    state: dict[str, Tensor] = {}
    for name, tensor in live.items():
        if name in places:
            padded = tensor.new_zeros(empty[name].shape)
            padded.view(-1)[places[name].reshape(-1)] = tensor.reshape(-1)
            tensor = padded
        state[name] = tensor
    full.load_state_dict(state, strict=True, assign=True)
    full.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        full.generation_config = copy.deepcopy(model.generation_config)
    full.eval()


def _places(full: nn.Module, fit: Fit) -> Iterator[tuple[str, Tensor]]:
    """For each tensor that is padded, the places of its kept elements among all, flat.

    Groups are taken out of a copy whose weights are the numbers of their elements.
    """
    numbered = hollow(full)
    owners = {
        owner_of(full, name)[0]
        for site in fit.sites
        for name in (*site.writers, *site.readers, *site.between)
    }
    touched = [
        f"{name}.{key}" if name else key
        for name in sorted(owners)
        for key, parameter in full.get_submodule(name)._parameters.items()
        if parameter is not None
    ]
    for name in touched:
        owner, _, key = name.rpartition(".")
        shape = full.get_parameter(name).shape
        numbers = torch.arange(shape.numel()).view(shape)
        numbered.get_submodule(owner)._parameters[key] = nn.Parameter(numbers, requires_grad=False)
    fit.apply_(numbered)
    for name in touched:
        kept = numbered.get_parameter(name)
        if kept.shape != full.get_parameter(name).shape:
            yield name, kept.detach()


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
