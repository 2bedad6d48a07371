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


def read_calibration(
    model: nn.Module, calibration: Iterable[Any], has_loss: bool = False
) -> list[Batch]:
    """Make batches on the device of the model; on the CPU for a model without weights.

    Arrays and lists of numbers become tensors, floats in the dtype of the model. For a model of
    transformers that reads token ids, ids [tokens] are one text.

    Args:
        model: the model that is calibrated.
        calibration: items, each a dict of keyword arguments, a tuple of positional ones, or the
            one input itself as a tensor, an array or a list of numbers.
        has_loss: whether a function of the caller computes a loss from the items. Then they may
            hold more than the model reads: other names, or positional arguments at the end.

    Raises:
        UsageError: if there are no items, or one has another type or does not fit the model.
    """
    check_iterable(calibration)
    parameters = list(model.parameters())
    device = torch.device("cpu") if parameters[0].is_meta else parameters[0].device
    dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
    signature = inspect.signature(model.forward)
    batches = []
    for index, item in enumerate(calibration):
        label = f"calibration item {index}"
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        if isinstance(item, Mapping):
            kwargs = {key: _tensor(v, device, dtype, f"{label}: {key}") for key, v in item.items()}
            for key in _unknown_names(model, signature, kwargs):
                if not has_loss:
                    raise UsageError(
                        f"{label} has {key!r}, which {type(model).__name__}.forward does not take; "
                        f"it takes {', '.join(_names(signature))}"
                    )
                extra[key] = kwargs.pop(key)
        elif isinstance(item, Tensor | np.ndarray) or _is_numbers(item):
            args = (_tensor(item, device, dtype, label),)
        elif isinstance(item, tuple | list):
            args = tuple(_tensor(v, device, dtype, f"{label}, {i}") for i, v in enumerate(item))
        else:
            raise UsageError(
                f"{label} is a {type(item).__name__}; "
                "expected a dict of keyword arguments, a tuple or a tensor"
            )
        surplus: tuple[Any, ...] = ()
        if has_loss:
            args, surplus = _split_surplus(args, signature)
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
        whole: Any = kwargs | extra if isinstance(item, Mapping) else (*args, *surplus)
        if isinstance(item, Tensor | np.ndarray) or _is_numbers(item):
            whole = args[0]
        batches.append(Batch(args, kwargs, masks, (index,), whole))
    if not batches:
        raise UsageError("calibration is empty; give at least one batch of model inputs")
    return batches


def check_iterable(calibration: Any) -> None:
    """Raise UsageError for what is no iterable of model inputs, or a single one of them."""
    if isinstance(calibration, Mapping | Tensor | np.ndarray | str):
        raise UsageError(
            f"calibration is a single {type(calibration).__name__}; "
            "give an iterable of model inputs, for example a list of batches"
        )
    if not isinstance(calibration, Iterable):
        raise UsageError(
            f"calibration is a {type(calibration).__name__}; give an iterable of model inputs"
        )


def _is_numbers(value: Any) -> bool:
    """Whether a value is a list of numbers, or of such lists."""
    if not isinstance(value, list) or not value:
        return False
    return all(_is_numbers(v) or (isinstance(v, int | float | np.number)) for v in value)


def _tensor(value: Any, device: torch.device, dtype: torch.dtype, label: str) -> Any:
    """Tensors, arrays and lists of numbers as tensors; None, numbers and the rest unchanged."""
    if isinstance(value, Tensor):
        if value.is_meta:
            raise UsageError(f"{label} has no values, it is on the meta device")
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


def _unknown_names(
    model: nn.Module, signature: inspect.Signature, kwargs: dict[str, Any]
) -> list[str]:
    """Names that forward does not have, even if its **kwargs would accept a tensor."""
    variable = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    accepted = set(_names(signature))
    if variable:
        if not hasattr(model, "main_input_name"):
            return []
        # transformers lists the other names in an annotation: Unpack[TransformersKwargs].
        for annotation in get_args(variable[0].annotation):
            accepted |= set(getattr(annotation, "__annotations__", ()))
        accepted |= {key for key, value in kwargs.items() if not isinstance(value, Tensor)}
    return [key for key in kwargs if key not in accepted]


def _names(signature: inspect.Signature) -> list[str]:
    """The arguments of forward, without **kwargs."""
    return [name for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD]


def _split_surplus(
    args: tuple[Any, ...], signature: inspect.Signature
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Positional arguments that forward takes, and those after them."""
    kinds = [p.kind for p in signature.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return args, ()
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    count = sum(kind not in keyword for kind in kinds)
    return args[:count], args[count:]


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
