"""Adapters in a checkpoint folder: peft merges LoRA into the weights; others are refused.

LoRA: Hu et al. 2021, arXiv:2106.09685. Of adapter_config.json only the options below are read, so
that an adapter cannot name code to import or a model to download.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse_engine.errors import InvalidFileError, UnsupportedModelError
from sparse_engine.io.tensorfile import parse_json, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Options of peft's LoraConfig for the targets of an adapter and its scale.
OPTIONS = (
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
)
# Options that change the model in ways that are not merged here.
REFUSED = (
    "megatron_config",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
)


def has_adapter(folder: Path) -> bool:
    """Whether a folder has files of an adapter."""
    return (folder / CONFIG).is_file() or any(folder.glob("adapter_model.*"))


def adapter_only(folder: Path) -> str:
    """The error message for a folder with an adapter but without base weights."""
    plain = _read_config(folder)
    base = str(plain.get("base_model_name_or_path") or "an unnamed model")[:200]
    kind = str(plain.get("peft_type"))[:40]
    return (
        f"{folder}: is a {kind} adapter for {base}, not a model: put config.json and the weights "
        f"of {base} into the folder too, or save the merged model (merge_and_unload)"
    )


def merge_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """`model` with the adapter in `folder` merged into its weights.

    Raises:
        UnsupportedModelError: peft is not installed, or the adapter is not a mergeable LoRA.
        InvalidFileError: The adapter's files do not fit the model.
    """
    plain = _read_config(folder)
    kind = str(plain.get("peft_type"))[:40]
    refused = [option for option in REFUSED if plain.get(option)]
    if kind != "LORA" or refused:
        kind = f"{kind} adapter with {refused[0]}" if refused else f"{kind} adapter"
        raise UnsupportedModelError(
            f"{folder / CONFIG}: an {kind} is not merged here: merge it with peft "
            "(merge_and_unload), save the model, and give that folder"
        )
    tensors = _read_weights(folder)
    try:
        import peft
    except ImportError:
        raise UnsupportedModelError(
            f"{folder}: has a LoRA adapter ({CONFIG}), and merging it needs peft: pip install "
            f"peft, or remove {CONFIG} to ignore the adapter"
        ) from None
    options = {name: plain[name] for name in OPTIONS if plain.get(name) is not None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on task names and downloads
            config = peft.LoraConfig(**options, inference_mode=True)
            wrapped: Any = peft.PeftModel(model, config)
            result: Any = peft.set_peft_model_state_dict(wrapped, tensors)
            left = list(result.unexpected_keys)
            left += [name for name in result.missing_keys if "lora_" in name]
            if left:
                raise ValueError(f"tensor {left[0]!r} has no counterpart ({len(left)} in all)")
            merged: nn.Module = wrapped.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft raises exceptions of many types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidFileError(f"{folder}: the adapter does not fit: {reason[0][:300]}") from None
    for name in ("peft_config", "active_peft_config"):
        vars(merged).pop(name, None)
    return merged.eval()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise InvalidFileError(f"{folder}: has adapter weights, but no {CONFIG}")
    return parse_json(path.read_bytes(), str(path))


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise InvalidFileError(
            f"{folder}: has {CONFIG}, but no {WEIGHTS} (pickle is never read, as it can run code)"
        )
    with open(path, "rb") as file:
        read_header(file.fileno(), path)
    from safetensors.torch import load_file

    return load_file(str(path))
