"""Reads what the caller gives as calibration inputs: dicts, tuples, tensors, arrays or lists."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.models.inputs import check_ids, has_decoder
from sparse_engine.pruning.calibration.batch import IGNORED, Batch, token_masks


def read_calibration(model: nn.Module, calibration: Iterable[Any]) -> list[Batch]:
    """Make batches on the device of the model.

    Arrays and lists of numbers become tensors, floats in the dtype of the model. For a model of
    transformers that reads token ids, ids [tokens] are one text.

    Args:
        model: the model that is calibrated.
        calibration: items, each a dict of keyword arguments, a tuple of positional ones, or the
            one input itself as a tensor, an array or a list of numbers.

    Raises:
        UsageError: if there are no items, or one has another type or does not fit the model.
    """
    if isinstance(calibration, Mapping | Tensor | np.ndarray | str):
        raise UsageError(
            f"calibration is a single {type(calibration).__name__}; "
            "give an iterable of model inputs, for example a list of batches"
        )
    parameters = list(model.parameters())
    device = parameters[0].device
    dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
    signature = inspect.signature(model.forward)
    batches = []
    for index, item in enumerate(calibration):
        label = f"calibration item {index}"
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(item, Mapping):
            kwargs = {key: _tensor(v, device, dtype, f"{label}: {key}") for key, v in item.items()}
            _check_names(model, signature, kwargs, label)
        elif isinstance(item, Tensor | np.ndarray) or _is_numbers(item):
            args = (_tensor(item, device, dtype, label),)
        elif isinstance(item, tuple | list):
            args = tuple(_tensor(v, device, dtype, f"{label}, {i}") for i, v in enumerate(item))
        else:
            raise UsageError(
                f"{label} is a {type(item).__name__}; "
                "expected a dict of keyword arguments, a tuple or a tensor"
            )
        if getattr(model, "main_input_name", None) == "input_ids":
            args, kwargs = _as_batch_of_one(args, kwargs)
        try:
            arguments = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise UsageError(f"{label}: {type(model).__name__}.forward: {error}") from None
        arguments |= arguments.pop("kwargs", {})
        check_ids(model, arguments, label)
        if has_decoder(model):
            kwargs = _pad_decoder(kwargs)
        masks = token_masks(arguments | kwargs, has_decoder(model))
        batches.append(Batch(args, kwargs, masks, (index,)))
    if not batches:
        raise UsageError("calibration is empty; give at least one batch of model inputs")
    return batches


def _is_numbers(value: Any) -> bool:
    """Whether a value is a list of numbers, or of such lists."""
    if not isinstance(value, list) or not value:
        return False
    return all(_is_numbers(v) or (isinstance(v, int | float | np.number)) for v in value)


def _tensor(value: Any, device: torch.device, dtype: torch.dtype, label: str) -> Any:
    """Tensors, arrays and lists of numbers as tensors; None, numbers and the rest unchanged."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, str | bytes) or (
        isinstance(value, list | tuple) and value and all(isinstance(v, str | bytes) for v in value)
    ):
        raise UsageError(
            f"{label} is text: give what the model's tokenizer makes of it, "
            "as tokenizer(text, return_tensors='pt')"
        )
    if not isinstance(value, np.ndarray) and not _is_numbers(value):
        return value
    try:
        array = np.array(value)
    except ValueError as error:  # rows of different lengths
        raise UsageError(f"{label} is no array of numbers: {error}") from None
    if array.dtype.kind not in "fiub":
        raise UsageError(f"{label} is no array of numbers, but of {array.dtype}")
    tensor = torch.from_numpy(array).to(device)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _check_names(
    model: nn.Module, signature: inspect.Signature, kwargs: dict[str, Any], label: str
) -> None:
    """Refuse names that forward does not have, even if its **kwargs would accept a tensor."""
    names, var_keyword = [], None
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            var_keyword = parameter
        else:
            names.append(parameter.name)
    accepted: set[str] = set()
    if var_keyword is not None:
        if not hasattr(model, "main_input_name"):
            return
        # transformers lists the other names in an annotation: Unpack[TransformersKwargs].
        for annotation in get_args(var_keyword.annotation):
            accepted |= set(getattr(annotation, "__annotations__", ()))
        accepted |= {key for key, value in kwargs.items() if not isinstance(value, Tensor)}
    for key in kwargs:
        if key not in names and key not in accepted:
            raise UsageError(
                f"{label} has {key!r}, which {type(model).__name__}.forward does not take; "
                f"it takes {', '.join(names)}"
            )


def _as_batch_of_one(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Add the batch dimension to ids [tokens], and to all other tensors of one dimension."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(ids, Tensor) or ids.ndim != 1 or ids.is_floating_point():
        return args, kwargs

    def batched(value: Any) -> Any:
        return value.unsqueeze(0) if isinstance(value, Tensor) and value.ndim == 1 else value

    return tuple(map(batched, args)), {key: batched(value) for key, value in kwargs.items()}


def _pad_decoder(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Pad the decoder's input by one token if it is as long as the text but masked otherwise.

    The mask of an activation is found by its shape, so the two inputs must differ in shape.
    """
    mask, ids = kwargs.get("attention_mask"), kwargs.get("decoder_input_ids")
    if not isinstance(mask, Tensor):
        return kwargs
    pad = nn.functional.pad
    if not isinstance(ids, Tensor):
        labels = kwargs.get("labels")
        if isinstance(labels, Tensor) and _differ_in_one_shape(labels != IGNORED, mask != 0):
            return kwargs | {"labels": pad(labels, (0, 1), value=IGNORED)}
        return kwargs
    own = kwargs.get("decoder_attention_mask")
    own = torch.ones_like(ids) if own is None else own
    if "labels" in kwargs or not _differ_in_one_shape(own != 0, mask != 0):
        return kwargs
    longer = {"decoder_input_ids": pad(ids, (0, 1)), "decoder_attention_mask": pad(own, (0, 1))}
    return kwargs | longer


def _differ_in_one_shape(own: Tensor, mask: Tensor) -> bool:
    return own.shape == mask.shape and not torch.equal(own, mask)
