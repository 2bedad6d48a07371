"""Bounds on the sizes of a config by the tensors of its file, before a model is built."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sparse_engine.errors import InvalidFileError
from sparse_engine.io.fused import fused_shapes
from sparse_engine.io.hugging import empty_model, read_config
from sparse_engine.io.tensorfile import Slot
from sparse_engine.structures import Fit, Shape, find_fit

# Counts that config classes loop over when they are read; each counted thing has a tensor.
COUNTS = re.compile(r"(layers?|depths?|blocks?|stages?|n_layer|num_labels)$")
# Attention heads and their size, by the names of all families; both are at least 1.
HEADS = re.compile(
    r"^(num_|n_|encoder_|decoder_)?((attention|key_value)_)?(heads?|head_dim)$|^d_kv$"
)
MAX_LABELS = 1 << 20
# One tensor holds all experts of a layer; each of them becomes a module.
EXPERTS = re.compile(r"experts$")
MAX_EXPERTS = 1 << 12
# Flags that transformers checks only when a model runs.
FLAGS = frozenset(("output_hidden_states", "output_attentions", "use_cache", "is_decoder"))
# Only non-persistent buffers are allocated by the constructor.
MAX_BUFFER_BYTES = 1 << 30
# Allowance for tensors that a file leaves out, such as tied ones and sinusoidal positions.
SPARE_ELEMENTS = 1 << 24


def most_parameters(tensors: int) -> int:
    """Most parameters of a model whose file has so many tensors; some share or split a tensor."""
    return 64 + 4 * tensors


def check_values(config: Any, tensors: int) -> None:
    """Raise InvalidFileError for too many layers, labels or experts, no heads, or a wrong flag.

    Args:
        config: config.json as parsed; checked at every depth.
        tensors: Number of tensors in the file.
    """
    if isinstance(config, list):
        for entry in config:
            check_values(entry, tensors)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        check_values(value, tensors)
        if key in FLAGS and not (value is None or isinstance(value, bool)):
            raise InvalidFileError(f"config.json: {key} is {str(value)[:40]}: give true or false")
        if type(value) is int and value < 1 and HEADS.search(key):
            raise InvalidFileError(f"config.json: {key} is {value}: give 1 or more")
        if type(value) is int and value > MAX_EXPERTS and EXPERTS.search(key):
            raise InvalidFileError(f"config.json: {key} is {value}, at most {MAX_EXPERTS}")
        if type(value) is not int or not COUNTS.search(key):
            continue
        most = MAX_LABELS if key == "num_labels" else most_parameters(tensors)
        if value > most:
            raise InvalidFileError(
                f"config.json: {key} is {value}, far more than {tensors} tensors can be"
            )


def check_checkpoint(cls: type[nn.Module], plain: dict[str, Any], slots: Mapping[str, Slot]) -> Fit:
    """Raise InvalidFileError where a checkpoint's config needs far more weights than its files
    hold.

    The model is built on the meta device. Missing tensors and other shapes are found later.

    Returns:
        Which heads, units and other groups the files lack.
    """
    tensors, held = len(slots), sum(math.prod(slot.shape) for slot in slots.values())
    check_values(plain, tensors)
    draft = empty_model(cls, read_config(plain), most_parameters(tensors), buffers=False)
    fit = find_fit(draft, _shapes_in(draft, slots))
    fit.apply_(draft)
    needed = sum(parameter.numel() for parameter in draft.parameters())
    if needed > 4 * held + SPARE_ELEMENTS:
        raise InvalidFileError(
            f"config.json: {cls.__name__} has {needed} weights, the files hold {held}"
        )
    check_buffers(draft)
    return fit


def _shapes_in(model: Any, slots: Mapping[str, Slot]) -> dict[str, Shape]:
    """The shapes of stored tensors by their names in a model; the files may be of its base model,
    or of one with a head.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    shapes: dict[str, Shape] = {name: slot.shape for name, slot in slots.items()}
    shapes |= fused_shapes(shapes)
    return {
        name: shapes[stored]
        for name in model.state_dict()
        for stored in (name, name.removeprefix(prefix), f"{prefix}{name}")
        if stored in shapes
    }


def check_buffers(draft: nn.Module) -> None:
    """Raise InvalidFileError if the buffers of a model on the meta device would be too large."""
    size = sum(buffer.nbytes for buffer in draft.buffers())
    if size > MAX_BUFFER_BYTES:
        raise InvalidFileError(f"config.json: buffers of {size} bytes, at most {MAX_BUFFER_BYTES}")


def check_numbers(model: nn.Module) -> None:
    """Raise InvalidFileError where a config makes a model fail or compute NaN for every input.

    Such configs have a negative epsilon, rotary angles or other buffers that are NaN, or numbers of
    heads or distances that do not fit each other.
    """
    _check_heads(getattr(model, "config", None))
    for name, module in model.named_modules():
        for key in ("eps", "variance_epsilon", "epsilon", "attention_scaling"):
            value = vars(module).get(key)
            fine = type(value) in (int, float) and math.isfinite(value)
            if value is not None and not (fine and (value >= 0 or key == "attention_scaling")):
                raise InvalidFileError(
                    f"config.json: {key} of {name} is {value!s:.40}: give 0 or more"
                )
        for key, buffer in module._buffers.items():
            if buffer is None or not buffer.is_floating_point() or buffer.is_meta:
                continue
            if key not in module._non_persistent_buffers_set:
                continue  # its values are in the file
            wrong = ~buffer.isfinite() if key.endswith("inv_freq") else buffer.isnan()
            if bool(torch.any(wrong)):
                raise InvalidFileError(f"config.json: it makes {name}.{key} NaN or infinite")


def _check_heads(config: Any) -> None:
    """Check sizes of attention that no tensor has."""
    heads, keys = (
        getattr(config, f"num_{kind}_heads", None) for kind in ("attention", "key_value")
    )
    if type(heads) is int and type(keys) is int and (keys < 1 or heads % keys):
        raise InvalidFileError(
            f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {keys}"
        )
    buckets = getattr(config, "relative_attention_num_buckets", None)
    distance = getattr(config, "relative_attention_max_distance", 128)
    fits = type(buckets) is type(distance) is int and 4 <= buckets < 2 * distance
    if buckets is not None and not fits:
        raise InvalidFileError(
            f"config.json: relative_attention_num_buckets {buckets!s:.40} does not fit "
            f"relative_attention_max_distance {distance!s:.40}"
        )
