"""Hugging Face checkpoints in safetensors; pickle is refused, code is never run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse_engine.errors import (
    InvalidFileError,
    SparseEngineError,
    UnsupportedModelError,
    UsageError,
)
from sparse_engine.formats.checks import dtype_name
from sparse_engine.io.adapters import CONFIG as ADAPTER
from sparse_engine.io.adapters import adapter_only, has_adapter, merge_adapter
from sparse_engine.io.bounds import check_checkpoint, check_numbers
from sparse_engine.io.companions import COMPANIONS, write_companions
from sparse_engine.io.folder import check_free, new_folder
from sparse_engine.io.foreign import Layout, layout_of
from sparse_engine.io.hugging import model_class, read_config, transformers_module
from sparse_engine.io.manifest import MANIFEST
from sparse_engine.io.model_files import Files, companions_of
from sparse_engine.io.package import Progress, is_package
from sparse_engine.io.reader import load
from sparse_engine.io.removed import UNSEEN, recorded
from sparse_engine.io.shards import INDEX, WEIGHTS, StoredDtypes, read_headers, weight_files
from sparse_engine.io.statedict import is_plain, plain_state
from sparse_engine.io.tensorfile import Slot, parse_json
from sparse_engine.io.writer import RECIPE
from sparse_engine.modules.effective import fold_
from sparse_engine.nn import SparseLinear
from sparse_engine.structures import Fit, Remaining

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def load_pretrained(
    path_or_id: str | Path, progress: Progress | None = None
) -> tuple[nn.Module, Path]:
    """A Hugging Face folder or id, or a package, as a model; returns it and its folder.

    The model is float32, in eval mode, of the class that config.json names. A LoRA adapter in the
    folder is merged into the weights. State dicts of torch.compile (`_orig_mod.`), DataParallel
    (`module.`) and torch.nn.utils.prune (`weight_orig` times `weight_mask`) are read too, and the
    layouts of `sparse_engine.io.foreign`.

    Args:
        path_or_id: A folder, or an id of the hub such as "org/name".
        progress: Called as (done, total, tensor name) while weights are checked.

    Raises:
        UnsupportedModelError: No such folder or id, or an unknown architecture.
        InvalidFileError: Damaged, missing, non-finite or pickled weights.

    >>> model, folder = load_pretrained("sentence-transformers/all-MiniLM-L6-v2")
    """
    folder = find_folder(path_or_id)
    if is_package(folder):
        return load(folder, progress=progress), folder
    path, adapted = folder / "config.json", has_adapter(folder)
    if adapted and not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise UnsupportedModelError(adapter_only(folder))
    if not path.is_file():
        raise InvalidFileError(f"{folder}: has no config.json: is it a Hugging Face model folder?")
    plain = parse_json(path.read_bytes(), str(path))
    model = _build(folder, plain, adapted)
    if adapted:
        model = merge_adapter(model, folder).requires_grad_(False)
    _check_finite(model, folder, progress)
    return model, folder


def find_folder(path_or_id: str | Path) -> Path:
    """The local folder; an id of the hub is downloaded. Raises UnsupportedModelError."""
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    text = str(path_or_id)
    if folder.exists():
        raise UnsupportedModelError(f"{text} is a file: give the folder it is in")
    if not HUB_ID.fullmatch(text):
        raise UnsupportedModelError(f"{text} is no folder, and no Hugging Face id such as org/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UnsupportedModelError(
            f"{text} is no folder; to download models: pip install 'sparse-engine[hf]'"
        ) from None
    patterns = [*COMPANIONS, "*.safetensors", INDEX, MANIFEST, ADAPTER]
    try:
        return Path(snapshot_download(text, allow_patterns=patterns))
    except Exception as error:  # the hub raises its own errors, httpx's, OSError and ValueError
        reason = str(error).strip().splitlines()
        raise UnsupportedModelError(
            f"{text} is neither a folder nor a Hugging Face id that can be reached: "
            f"{(reason or [type(error).__name__])[0][:300]}"
        ) from None


def _build(folder: Path, plain: dict[str, Any], adapted: bool) -> nn.Module:
    """The model with its weights; raises if any would be left random.

    Args:
        folder: The folder.
        plain: config.json as parsed.
        adapted: Whether the folder has an adapter too; transformers would look for the base model
            that it names, so the weights are read here.
    """
    slots = {name: slot for name, (_, slot) in read_headers(folder).items()}
    files = weight_files(folder)
    try:
        layout = layout_of(plain)
        read_here = adapted or layout is not None or not is_plain(slots)
        plain = plain if layout is None else layout.config
        cls, fit = _fit(plain, layout, slots)
        with _quiet():
            model, info = _fitting(cls, fit).from_pretrained(
                None if read_here else str(folder),
                state_dict=_read_state(files, layout) if read_here else None,
                config=read_config(plain),
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # _check_complete refuses them by name
            )
        generation = folder / "generation_config.json"
        if read_here and generation.is_file() and hasattr(model, "generation_config"):
            options = parse_json(generation.read_bytes(), str(generation))
            model.generation_config = transformers_module().GenerationConfig.from_dict(options)
        model.__class__ = cls
        check_numbers(model)
    except (UnsupportedModelError, InvalidFileError) as error:
        raise type(error)(f"{folder}: {error}") from None
    except SparseEngineError:
        raise
    except Exception as error:  # transformers raises exceptions of many types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidFileError(f"{folder}: {reason[0][:300]}") from None
    _fill_folded(model, info, files, layout)
    _check_complete(folder, cls.__name__, info)
    return model.eval().requires_grad_(False)


def _fit(
    plain: dict[str, Any], layout: Layout | None, slots: Mapping[str, Slot]
) -> tuple[Any, Fit]:
    """The class of a model, and which groups its files lack; sizes are bounded by the files."""
    names = plain.get("architectures")
    named = isinstance(names, list) and bool(names) and isinstance(names[0], str)
    cls: Any = model_class(plain, names[0] if named else None)  # type: ignore[index]
    return cls, check_checkpoint(cls, plain, slots if layout is None else layout.plain_slots(slots))


def removed_from(folder: Path) -> tuple[Remaining, ...]:
    """What was removed from the model of a Hugging Face folder, without reading its weights.

    Raises:
        InvalidFileError: config.json, the weights or pruning.json are damaged.
        UnsupportedModelError: the architecture is not known.
    """
    path, record = folder / "config.json", folder / RECIPE
    plain = parse_json(path.read_bytes(), str(path))
    report = parse_json(record.read_bytes(), str(record)) if record.is_file() else None
    slots = {name: slot for name, (_, slot) in read_headers(folder).items()}
    try:
        layout = layout_of(plain)
        _, fit = _fit(plain if layout is None else layout.config, layout, slots)
        return (*fit.remaining, *(site for site in recorded(report) if site.kind in UNSEEN))
    except (UnsupportedModelError, InvalidFileError) as error:
        raise type(error)(f"{folder}: {error}") from None


def _fitting(cls: Any, fit: Fit) -> Any:
    """A class whose models lose what the files lack as soon as they are built, without weights."""
    if not fit.left:
        return cls

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, *args, **kwargs)
        fit.apply_(self)

    return type(cls.__name__, (cls,), {"__init__": init, "__module__": cls.__module__})


def _read_state(files: list[Path], layout: Layout | None) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for file in files:
        state |= load_file(str(file))
    return plain_state(state if layout is None else layout.plain_state(state))


def _fill_folded(
    model: nn.Module, info: dict[str, Any], files: list[Path], layout: Layout | None
) -> None:
    """Read plain weights into a model that computes them from parts, such as weight norm's.

    `prune` writes such checkpoints, because it folds the parts into one weight.
    """
    missing = set(info["missing_keys"])
    parts = {
        name: {other for other in missing if other.startswith(_parametrization(name))}
        for name in info["unexpected_keys"]
    }
    parts = {name: computed for name, computed in parts.items() if computed}
    if not parts:
        return
    fold_(model, parts.__contains__)
    state = _read_state(files, layout)
    for name, computed in parts.items():
        weight = model.get_parameter(name)
        if state[name].shape == weight.shape:
            weight.data.copy_(state[name])
            missing -= computed
    info["missing_keys"] = missing


def _parametrization(name: str) -> str:
    """Prefix of the names of the tensors from which torch computes a weight."""
    module, _, weight = name.rpartition(".")
    return f"{module}.parametrizations.{weight}."


def _check_complete(folder: Path, model: str, info: dict[str, Any]) -> None:
    """Raise InvalidFileError for missing weights, which would stay random, and for other shapes."""
    if other := sorted(info["mismatched_keys"]):
        name, stored, expected = other[0][:3]
        raise InvalidFileError(
            f"{folder}: tensor {name!r} is {_dims(stored)} in the file, config.json makes it "
            f"{_dims(expected)} in {model} ({len(other)} in all)"
        )
    missing = sorted(info["missing_keys"])
    if not missing:
        return
    message = f"tensor {missing[0]!r} of {model} is missing ({len(missing)} in all)"
    stem, _, leaf = missing[0].rpartition(".")
    extra = sorted(info["unexpected_keys"])
    if prefixed := [name for name in extra if name.endswith(f".{missing[0]}")]:
        prefix = prefixed[0].removesuffix(missing[0])
        message += f"; the file has {prefixed[0]!r}: save the state dict without {prefix!r}"
    elif parts := [name for name in extra if name.startswith((f"{stem}.{leaf}_", f"{stem}.param"))]:
        message += (
            f"; the file has {' and '.join(map(repr, parts[:2]))}: make the weight permanent first "
            "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations)"
        )
    elif extra:
        message += (
            f"; the file has {extra[0]!r} instead ({len(extra)} that the model does not have)"
        )
    raise InvalidFileError(f"{folder}: {message}")


def _dims(shape: Any) -> str:
    return "x".join(map(str, shape)) or "one number"


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars or load reports from transformers: errors say what is wrong."""
    logging = transformers_module().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_finite(model: nn.Module, folder: Path, progress: Progress | None) -> None:
    named = list(model.named_parameters())
    for done, (name, tensor) in enumerate(named, 1):
        finite = tensor.numel() == 0 or not tensor.is_floating_point()
        if not finite and not all(bool(end.isfinite()) for end in tensor.aminmax()):
            raise InvalidFileError(f"{folder}: tensor {name!r} holds NaN or infinity")
        if progress is not None:
            progress(done, len(named), name)


def save_checkpoint(
    model: nn.Module,
    folder: str | Path,
    source: str | Path,
    pruning: Mapping[str, Any],
    progress: Progress | None = None,
    files: Files | None = None,
) -> Path:
    """Write a pruned model as a Hugging Face checkpoint, zeros and all; returns its folder.

    Any tool that reads such folders reads this one. Floating-point tensors have the dtype that they
    have in `source`. The folder appears only when it is complete.

    Args:
        model: The pruned model, dense.
        folder: The folder to write; must not exist.
        source: The folder that the model was loaded from. Its config.json and tokenizer files are
            copied; options that changed in `model.config` since are written as they are now.
        pruning: The report of `prune` as plain values; written to pruning.json.
        progress: Called as (done, total, file name).
        files: Written in place of files of `source`; None for one that is left out.

    Raises:
        UsageError: `folder` exists, the model is sparse or not of transformers, or a weight is too
            large for its dtype in `source`.
        SparseEngineError: The files cannot be written.
    """
    target = Path(folder)
    check_free(target)
    if not isinstance(model, transformers_module().PreTrainedModel):
        raise UsageError(f"{type(model).__name__} is not a transformers model: use save")
    if any(isinstance(module, SparseLinear) for module in model.modules()):
        raise UsageError("the model holds sparse layers: densify_(model) first, or use save")
    companions = companions_of(model, source, files)
    try:
        recipe = json.dumps(dict(pruning), indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UsageError(f"pruning is not plain JSON: {error}") from None
    dtypes = None if is_package(Path(source)) else StoredDtypes(Path(source))
    with new_folder(target) as draft:
        write_weights(model, draft, dtypes)
        for name in os.listdir(draft):
            if not name.startswith("model"):
                (draft / name).unlink()
        if progress is not None:
            progress(1, 2, WEIGHTS)
        write_companions(draft, companions)
        (draft / RECIPE).write_text(recipe)
        if progress is not None:
            progress(2, 2, RECIPE)
    return target


def write_weights(model: Any, draft: Path, dtypes: StoredDtypes | None) -> None:
    """`save_pretrained` into a folder, in the dtypes of a source; None for those of the model."""
    from safetensors import SafetensorError

    state = None if dtypes is None else _cast_state(model, dtypes)
    try:
        with _quiet():
            model.save_pretrained(str(draft), state_dict=state)
    except SafetensorError as error:  # a full disk
        raise OSError(None, str(error).splitlines()[0]) from None
    # safetensors writes files that nobody else may read, whatever the umask.
    mode = (draft / "config.json").stat().st_mode
    for path in draft.glob("*.safetensors"):
        path.chmod(mode)


def _cast_state(model: nn.Module, dtypes: StoredDtypes) -> dict[str, torch.Tensor]:
    """The state dict in the dtypes of the source; tied weights stay one tensor."""
    state: dict[str, torch.Tensor] = {}
    made: dict[tuple[Any, ...], torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        dtype = dtypes.of(name) if tensor.is_floating_point() else tensor.dtype
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if key not in made:
            made[key] = tensor.to(dtype)
            if dtype != tensor.dtype and not made[key].isfinite().all():
                raise UsageError(
                    f"{name} holds a value too large for {dtype_name(dtype)}, its dtype in the "
                    "checkpoint: prune a copy in float32 or bfloat16"
                )
        state[name] = made[key]
    return state
