"""Attention masks of transformers, as the library has them: tokens that exist, without padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import UsageError


def key_mask(mask: Tensor) -> Tensor:
    """Which keys an encoder's mask shows.

    Args:
        mask: [batch, seq], or [batch, 1, queries, seq] that is the same for all queries; boolean,
            integer, or float that is added to scores.

    Returns:
        A boolean tensor [batch, seq].

    Raises:
        UsageError: if queries or heads see different keys.
    """
    if mask.dim() == 2:
        return mask != 0
    seen = mask == 0 if mask.is_floating_point() else mask != 0
    same = seen.dim() == 4 and seen.shape[1] == 1
    if not same or not torch.equal(seen, seen[:, :, :1].expand_as(seen)):
        raise UsageError("attention_mask must hide the same keys from every query and head")
    return seen[:, 0, 0]


def new_tokens(mask: Tensor | None, batch: int, seq: int, cached: Tensor | None) -> Tensor:
    """Which tokens exist, of earlier calls and of this one: boolean [batch, earlier + seq].

    Args:
        mask: [batch, earlier + seq], zero for padding; None for no padding.
        batch, seq: the size of this call.
        cached: boolean [batch, earlier], what the cache holds; None without a cache.

    Raises:
        UsageError: if the mask has another shape, hides a whole sequence, or does not show the
            earlier tokens that the cache holds.
    """
    before = 0 if cached is None else cached.shape[1]
    if mask is None:
        new = torch.ones(batch, seq, dtype=torch.bool)
        return new if cached is None else torch.cat([cached, new], 1)
    if tuple(mask.shape) != (batch, before + seq):
        raise UsageError(f"the mask is {list(mask.shape)}, expected {[batch, before + seq]}")
    exists = mask != 0
    if cached is not None and not torch.equal(exists[:, :before], cached):
        raise UsageError("the mask hides other earlier tokens than when they were given")
    if seq and not bool(exists.any(1).all()):
        raise UsageError(f"sequence {int(exists.any(1).int().argmin())} is masked as a whole")
    return exists


def has_holes(exists: Tensor) -> bool:
    """Whether padding is between tokens. The library drops padding, so distances would shrink."""
    if exists.shape[1] == 0:
        return False
    starts = (exists[:, 1:] > exists[:, :-1]).sum(1)
    return bool(starts.gt(~exists[:, 0]).any())


def mask_problem(mask: Any) -> str | None:
    """Why a decoder's mask is not one for the library, or None."""
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
        return None
    return "the mask is not [batch, seq]"


def is_packed(positions: Tensor | None) -> bool:
    """Whether positions do not rise by one: transformers then keeps sequences of a row apart."""
    return positions is not None and bool((positions.diff(dim=-1) != 1).any())
