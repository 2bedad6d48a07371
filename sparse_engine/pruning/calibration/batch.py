"""One calibration batch: the arguments of a forward pass, and which of its tokens are padding."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparse_engine.errors import UsageError, one_line
from sparse_engine.models.inputs import has_decoder

IGNORED = -100  # the label that transformers gives to padding


@dataclass(frozen=True)
class Batch:
    """Arguments of one forward pass.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        masks: bool [batch, tokens] each, False at padding: of the encoder, of the decoder.
        items: the calibration item that each row [batch] comes from; a single number if all rows
            come from one item.
        item: the calibration item in the form in which it was given, its arrays as tensors on the
            device of the model; None for merged batches.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    masks: tuple[Tensor, ...] = ()
    items: tuple[int, ...] = (0,)
    item: Any = None

    def __str__(self) -> str:
        """ "calibration batch 3"; of merged batches the first, and how many there are."""
        count = len(set(self.items))
        merged = f" (run together with {count - 1} like it)" if count > 1 else ""
        return f"calibration batch {self.items[0]}{merged}"

    def naming_errors(self, model: nn.Module) -> AbstractContextManager[None]:
        """Turn an error of the model's forward into a UsageError that names batch and cause."""
        lacking = has_decoder(model) and "decoder_input_ids" not in self.kwargs
        detail = ", which has no decoder_input_ids" if lacking else ""
        return one_line(f"{self}: {type(model).__name__} fails on it{detail}")

    def mask_of(self, x: Tensor, routed: Tensor | None = None) -> Tensor | None:
        """Which tokens of an activation are none of padding; None if all are to be used.

        Args:
            x: [..., features].
            routed: of an expert's input, bool [tokens]: which tokens are its rows.

        Returns:
            bool, the shape of `x` without its last dimension.
        """
        if routed is not None:
            mask = next((m.flatten() for m in self.masks if m.numel() == len(routed)), None)
            return None if mask is None else mask[routed]
        return next((m for m in self.masks if x.ndim == 3 and x.shape[:2] == m.shape), None)

    def token_rows(self, x: Tensor, layer: str, features: int | None = None) -> Tensor:
        """Rows of an activation, without those of padding.

        Args:
            x: [..., features].
            layer: the name of the layer that reads `x`, for messages.
            features: the number of features that the layer expects, if that is to be checked.

        Returns:
            [tokens, features].

        Raises:
            UsageError: if a value is NaN or infinite, or the number of features is another one.
        """
        if features not in (None, x.shape[-1]):
            raise UsageError(f"{self}: {layer} gets {x.shape[-1]} features and takes {features}")
        mask = self.mask_of(x)
        rows = x.reshape(-1, x.shape[-1]) if mask is None else x[mask]
        if not rows.isfinite().all():
            bad = ~x.isfinite().all(-1)
            bad = bad if mask is None else bad & mask
            item = self.items[0]
            if x.ndim > 1 and len(self.items) == x.shape[0]:
                item = self.items[int(bad.reshape(len(x), -1).any(1).nonzero()[0])]
            raise UsageError(
                f"{layer} gets NaN or infinity from calibration batch {item}, in "
                f"{str(x.dtype).removeprefix('torch.')}; leave that batch out, or find what makes "
                "the model overflow"
            )
        return rows


def token_masks(arguments: Mapping[str, Any], has_decoder: bool) -> tuple[Tensor, ...]:
    """The masks of `Batch` from the arguments of a forward pass.

    Masks [batch, tokens], or [batch, choices, tokens], are True where the argument is not zero. A
    decoder without a mask reads all of its input, and all labels but IGNORED.

    Args:
        arguments: by name.
        has_decoder: whether the model is an encoder-decoder.

    Returns:
        bool [batch, tokens], or [batch x choices, tokens], for each mask that was given.
    """
    masks = [arguments.get("attention_mask")]
    if has_decoder:
        masks.append(arguments.get("decoder_attention_mask"))
        labels = arguments.get("labels")
        if isinstance(labels, Tensor) and arguments.get("decoder_input_ids") is None:
            masks.append(labels != IGNORED)
    return tuple(
        mask.reshape(-1, mask.shape[-1]) != 0
        for mask in masks
        if isinstance(mask, Tensor) and mask.ndim in (2, 3)
    )
