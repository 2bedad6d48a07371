"""Calibration inputs: what the model is run on to see what flows through its layers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from sparse_engine.errors import UsageError, one_line
from sparse_engine.models.inputs import check_ids, has_decoder

IGNORED = -100  # transformers' label of padding


@dataclass(frozen=True)
class Batch:
    """Arguments of one forward pass.

    real:  bool [batch, tokens] each, False where there is padding: of an encoder, of a decoder
    items: the calibration item that each row [batch] comes from; one number for all rows where
           there is one item
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    real: tuple[Tensor, ...] = ()
    items: tuple[int, ...] = (0,)

    def __str__(self) -> str:
        """ "calibration batch 3"; the first and the number of them, where several were merged."""
        several = len(set(self.items))
        more = f" (run together with {several - 1} like it)" if several > 1 else ""
        return f"calibration batch {self.items[0]}{more}"

    def running(self, model: nn.Module) -> AbstractContextManager[None]:
        """Turns an error of the model's forward into a UsageError that names batch and cause."""
        lacking = has_decoder(model) and "decoder_input_ids" not in self.kwargs
        told = ", which has no decoder_input_ids" if lacking else ""
        return one_line(f"{self}: {type(model).__name__} fails on it{told}")

    def tokens(self, x: Tensor, layer: str, features: int | None = None) -> Tensor:
        """Rows [tokens, features] of an activation [..., features], those of padding left out.

        Raises UsageError if any is NaN or infinite, or there are not as many features as given.
        """
        if features not in (None, x.shape[-1]):
            raise UsageError(f"{self}: {layer} gets {x.shape[-1]} features and takes {features}")
        real = next((r for r in self.real if x.ndim == 3 and x.shape[:2] == r.shape), None)
        rows = x.reshape(-1, x.shape[-1]) if real is None else x[real]
        if not rows.isfinite().all():
            bad = ~x.isfinite().all(-1)
            bad = bad if real is None else bad & real
            item = self.items[0]
            if x.ndim > 1 and len(self.items) == x.shape[0]:
                item = self.items[int(bad.reshape(len(x), -1).any(1).nonzero()[0])]
            raise UsageError(
                f"{layer} gets NaN or infinity from calibration batch {item}, in "
                f"{str(x.dtype).removeprefix('torch.')}; leave that batch out, or find what makes "
                "the model overflow"
            )
        return rows


def read_calibration(model: nn.Module, calibration: Iterable[Any]) -> list[Batch]:
    """Batches on the model's device from dicts of keyword arguments, tuples, tensors or arrays.

    Arrays and lists of numbers become tensors, floats in the dtype of the model. For a model of
    transformers that reads token ids, ids [seq] are one text.

    Raises UsageError if there are none, or an item is something else or does not fit the model.
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
        what = f"calibration item {index}"
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(item, Mapping):
            kwargs = {key: _tensor(v, device, dtype, f"{what}: {key}") for key, v in item.items()}
            _check_names(model, signature, kwargs, what)
        elif isinstance(item, Tensor | np.ndarray) or _is_numbers(item):
            args = (_tensor(item, device, dtype, what),)
        elif isinstance(item, tuple | list):
            args = tuple(_tensor(v, device, dtype, f"{what}, {i}") for i, v in enumerate(item))
        else:
            raise UsageError(
                f"{what} is a {type(item).__name__}; "
                "expected a dict of keyword arguments, a tuple or a tensor"
            )
        if getattr(model, "main_input_name", None) == "input_ids":
            args, kwargs = _as_batch(args, kwargs)
        try:
            given = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise UsageError(f"{what}: {type(model).__name__}.forward: {error}") from None
        given |= given.pop("kwargs", {})
        check_ids(model, given, what)
        if has_decoder(model):
            kwargs = _tell_apart(kwargs)
        batches.append(
            Batch(args, kwargs, real_tokens(given | kwargs, has_decoder(model)), (index,))
        )
    if not batches:
        raise UsageError("calibration is empty; give at least one batch of model inputs")
    return batches


def _is_numbers(value: Any) -> bool:
    """Whether a value is a list of numbers, or of such lists."""
    if not isinstance(value, list) or not value:
        return False
    return all(_is_numbers(v) or (isinstance(v, int | float | np.number)) for v in value)


def _tensor(value: Any, device: torch.device, dtype: torch.dtype, what: str) -> Any:
    """Tensors, arrays and lists of numbers as tensors; None, numbers and what else as they are."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, str | bytes) or (
        isinstance(value, list | tuple) and value and all(isinstance(v, str | bytes) for v in value)
    ):
        raise UsageError(
            f"{what} is text: give what the model's tokenizer makes of it, "
            "as tokenizer(text, return_tensors='pt')"
        )
    if not isinstance(value, np.ndarray) and not _is_numbers(value):
        return value
    try:
        array = np.array(value)
    except ValueError as error:  # rows of several lengths
        raise UsageError(f"{what} is no array of numbers: {error}") from None
    if array.dtype.kind not in "fiub":
        raise UsageError(f"{what} is no array of numbers, but of {array.dtype}")
    made = torch.from_numpy(array).to(device)
    return made.to(dtype) if made.is_floating_point() else made


def _check_names(
    model: nn.Module, signature: inspect.Signature, kwargs: dict[str, Any], what: str
) -> None:
    """Refuse names that forward does not take, also where its **kwargs would swallow a tensor."""
    names, others = [], None
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            others = parameter
        else:
            names.append(parameter.name)
    swallowed: set[str] = set()
    if others is not None:
        if not hasattr(model, "main_input_name"):
            return
        # transformers says what else it reads: Unpack[TransformersKwargs].
        for told in get_args(others.annotation):
            swallowed |= set(getattr(told, "__annotations__", ()))
        swallowed |= {key for key, value in kwargs.items() if not isinstance(value, Tensor)}
    for key in kwargs:
        if key not in names and key not in swallowed:
            raise UsageError(
                f"{what} has {key!r}, which {type(model).__name__}.forward does not take; "
                f"it takes {', '.join(names)}"
            )


def _as_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Ids [seq] and all that is as long as they are, as a batch of one."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(ids, Tensor) or ids.ndim != 1 or ids.is_floating_point():
        return args, kwargs

    def batched(value: Any) -> Any:
        return value.unsqueeze(0) if isinstance(value, Tensor) and value.ndim == 1 else value

    return tuple(map(batched, args)), {key: batched(value) for key, value in kwargs.items()}


def _tell_apart(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Pad what a decoder reads by one where it is as long as the text but masked otherwise.

    Padding is found by the shape of an activation, so that the two must differ in shape.
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


def real_tokens(given: Mapping[str, Any], has_decoder: bool) -> tuple[Tensor, ...]:
    """Where masks [batch, tokens], or [batch, choices, tokens], are not zero.

    A decoder without a mask reads all of its input, and labels but for IGNORED.
    """
    masks = [given.get("attention_mask")]
    if has_decoder:
        masks.append(given.get("decoder_attention_mask"))
        labels = given.get("labels")
        if isinstance(labels, Tensor) and given.get("decoder_input_ids") is None:
            masks.append(labels != IGNORED)
    return tuple(
        mask.reshape(-1, mask.shape[-1]) != 0
        for mask in masks
        if isinstance(mask, Tensor) and mask.ndim in (2, 3)
    )
