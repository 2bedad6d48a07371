"""NativeCache: keys and values that the library keeps, as transformers' generate handles a cache.

Imports transformers: only what has a transformers model at hand imports this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from sparse_engine import _core
from sparse_engine.errors import UsageError


class _Layer(CacheLayerMixin):
    """All layers at once: transformers asks one for lengths, and tells every one what to do."""

    is_sliding = False
    is_croppable = True

    def __init__(self, native: _core.KvCache) -> None:
        super().__init__()
        self.native = native
        self.memory: _core.KvCache | None = None
        self.is_initialized = True
        # Which columns of the padded batch the library holds: it keeps no padding.
        self.kept = torch.ones(len(native.lengths), 0, dtype=torch.bool)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: there are no tensors."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values come from the library alone."""
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

    def reset(self) -> None:
        """Forget everything."""
        self.crop(self.get_seq_length())
        self.memory = None

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last columns; a negative number, as older transformers give it, too."""
        columns = self.get_seq_length() - abs(tokens_to_remove)
        self.kept = self.kept[:, : max(0, columns)]
        self.native.crop(self.kept.sum(1).tolist())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence i goes on as beam_idx[i] did."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence `repeats` times."""
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


class NativeCache(Cache):
    """Keys and values of earlier tokens, held by the library without padding (csrc/blocks/cache.h)."""

    def __init__(self, native: _core.KvCache, owner: object) -> None:
        super().__init__(layers=[_Layer(native)])
        self.owner = owner
        """The decoder whose keys these are: no other one can read them."""

    @property
    def layer(self) -> _Layer:
        layer = self.layers[0]
        assert isinstance(layer, _Layer)
        return layer

    @property
    def native(self) -> _core.KvCache:
        return self.layer.native

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        memory = self.layer.memory
        return self.native.nbytes + (0 if memory is None else memory.nbytes)
