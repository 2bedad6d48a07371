"""NativeCacheLayer: keys and values that the library keeps, as part of a cache of transformers.

Imports transformers, so only code that has a transformers model imports this module.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from sparse_engine import _core
from sparse_engine.errors import UsageError

# Before transformers 5.24 the argument of `crop` is how many columns to keep, not how many to drop.
CROP_KEEPS = "tokens_to_remove" not in inspect.signature(Cache.crop).parameters


class NativeCacheLayer(CacheLayerMixin):
    """The keys and values of all layers: the only layer of a cache of transformers."""

    is_sliding = False
    is_croppable = True

    def __init__(self, native: _core.KvCache, owner: object) -> None:
        """Wrap `native`, which is empty; only the decoder `owner` can read it."""
        super().__init__()
        self.native = native
        self.owner = owner
        self.memory: _core.KvCache | None = None
        self.is_initialized = True
        # Which columns of the padded batch are in the cache: padding is not kept.
        self.kept = torch.ones(len(native.lengths), 0, dtype=torch.bool)

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeCacheLayer:
        """A copy that goes on from the same tokens; pages are shared until one writes to them."""
        copy = NativeCacheLayer(self.native.copy(), self.owner)
        copy.kept = self.kept.clone()
        copy.memory = None if self.memory is None else self.memory.copy()
        return copy

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: there are no tensors."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refuse tensors: only the library adds keys and values."""
        raise UsageError("a native cache holds no tensors that single layers could read")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that `query_length` more tokens would see."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns seen so far, padding included."""
        return self.kept.shape[1]

    def get_max_length(self) -> int:
        """There is no maximum."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.24

    def reset(self) -> None:
        """Drop all tokens and the memory."""
        self.crop(0 if CROP_KEEPS else self.get_seq_length())
        self.memory = None

    def crop(self, number: int) -> None:
        """Drop the last `number` columns; in older transformers, all but the first `number`."""
        columns = number if CROP_KEEPS and number >= 0 else self.get_seq_length() - abs(number)
        self.kept = self.kept[:, : max(0, columns)]
        self.native.crop(self.kept.sum(1).tolist())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence i go on as beam_idx[i] did."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times."""
        self.batch_select_indices(torch.arange(len(self.kept)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences, in this order."""
        self.native.select(indices.tolist())
        if self.memory is not None:
            self.memory.select(indices.tolist())
        self.kept = self.kept[indices]

    @property
    def batch_size(self) -> int:
        return len(self.kept)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return self.native.nbytes + (0 if self.memory is None else self.memory.nbytes)


def native_cache_layer(cache: Any) -> NativeCacheLayer | None:
    """The layer of a cache that the library has filled; None if it has not."""
    layers = getattr(_self_attention(cache), "layers", None) or ()
    return next((layer for layer in layers if isinstance(layer, NativeCacheLayer)), None)


def fill_cache(cache: Any, layer: NativeCacheLayer) -> Any:
    """Put `layer` in place of all layers of `cache`, an empty one of transformers.

    Returns:
        `cache`; or a new one where it is None, or of a version of transformers without layers.
    """
    inner = _self_attention(cache)
    if not hasattr(inner, "layers"):
        return Cache(layers=[layer])
    inner.layers, inner.layer_class_to_replicate = [layer], None
    return cache


def _self_attention(cache: Any) -> Any:
    """The part of an encoder-decoder's cache that grows with each token."""
    return getattr(cache, "self_attention_cache", cache)
