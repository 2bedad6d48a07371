"""Bounds on what a config asks for: by what the tensors of its file say, before anything is built."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sparse_engine.errors import InvalidFileError
from sparse_engine.io.hugging import empty_model, read_config
from sparse_engine.io.tensorfile import Slot

# What a config counts and its classes loop over as soon as they read it; every one has a tensor.
COUNTS = re.compile(r"(layers?|depths?|blocks?|stages?|n_layer|num_labels)$")
# Of attention, by all names that families have; there is at least one head, of one feature.
HEADS = re.compile(
    r"^(num_|n_|encoder_|decoder_)?((attention|key_value)_)?(heads?|head_dim)$|^d_kv$"
)
MAX_LABELS = 1 << 20
# What transformers only looks at when a model runs.
FLAGS = frozenset(("output_hidden_states", "output_attentions", "use_cache", "is_decoder"))
# Non-persistent buffers are all that a config can make the constructor allocate.
MAX_BUFFER_BYTES = 1 << 30
# Room for tensors that a file leaves out, such as tied ones and sinusoidal positions.
SPARE_ELEMENTS = 1 << 24


def most_parameters(tensors: int) -> int:
    """Parameters of a model whose file has so many tensors: some share one, some split one."""
    return 64 + 4 * tensors


def check_values(config: Any, tensors: int) -> None:
    """Raise InvalidFileError where a config counts more layers or labels than there can be, no heads,
    or has something else for a flag.
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
        if type(value) is not int or not COUNTS.search(key):
            continue
        most = MAX_LABELS if key == "num_labels" else most_parameters(tensors)
        if value > most:
            raise InvalidFileError(
                f"config.json: {key} is {value}, far more than {tensors} tensors can be"
            )


def check_checkpoint(cls: type[nn.Module], plain: dict[str, Any], slots: Sequence[Slot]) -> None:
    """Raise InvalidFileError where a checkpoint's config asks for far more than its files hold.

    The model is built without memory to see. What is missing, or of another shape, is found later.
    """
    tensors, held = len(slots), sum(math.prod(slot.shape) for slot in slots)
    check_values(plain, tensors)
    draft = empty_model(cls, read_config(plain), most_parameters(tensors), buffers=False)
    asked = sum(parameter.numel() for parameter in draft.parameters())
    if asked > 4 * held + SPARE_ELEMENTS:
        raise InvalidFileError(
            f"config.json: {cls.__name__} has {asked} weights, the files hold {held}"
        )
    check_buffers(draft)


def check_buffers(draft: nn.Module) -> None:
    """Raise InvalidFileError if the buffers of a model without memory would take too much of it."""
    size = sum(buffer.nbytes for buffer in draft.buffers())
    if size > MAX_BUFFER_BYTES:
        raise InvalidFileError(f"config.json: buffers of {size} bytes, at most {MAX_BUFFER_BYTES}")


def check_numbers(model: nn.Module) -> None:
    """Raise InvalidFileError where a config makes a model fail, or compute NaN, whatever its input is.

    That is an epsilon below zero, rotary angles or other buffers that are no numbers, and heads or
    distances that do not fit each other.
    """
    _check_heads(getattr(model, "config", None))
    for name, module in model.named_modules():
        for key in ("eps", "variance_epsilon", "epsilon", "attention_scaling"):
            value = vars(module).get(key)
            fine = type(value) in (int, float) and math.isfinite(value)
            if value is not None and not (fine and (value >= 0 or key == "attention_scaling")):
                told = str(value)[:40]
                raise InvalidFileError(f"config.json: {key} of {name} is {told}: give 0 or more")
        for key, buffer in module._buffers.items():
            if buffer is None or not buffer.is_floating_point() or buffer.is_meta:
                continue
            if key not in module._non_persistent_buffers_set:
                continue  # it is in the file
            wrong = ~buffer.isfinite() if key.endswith("inv_freq") else buffer.isnan()
            if bool(torch.any(wrong)):
                raise InvalidFileError(f"config.json: it makes {name}.{key} NaN or infinite")


def _check_heads(config: Any) -> None:
    """What attention can be told in sizes that no tensor has."""
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
