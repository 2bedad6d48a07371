"""NativeDecoder: embeddings, layers and last norm of a decoder, run by the library in one call."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_engine import _core
from sparse_engine.errors import UsageError
from sparse_engine.nn.native.masks import has_holes, is_packed, mask_problem, new_tokens
from sparse_engine.nn.native.stack import NativeStack, refuse_gradients

if TYPE_CHECKING:
    from sparse_engine.nn.native.cache import NativeCacheLayer


class NativeDecoder(NativeStack):
    """A proxy of the decoder of a causal language model, or of an encoder-decoder model.

    Prompts run on panels of tokens. Steps of up to seven new tokens run on kernels that read each
    weight once. Keys and values stay in the library. `generate` of transformers works as with the
    original, beams and sampling included.
    """

    cache_dtype: str | None = None
    """The dtype of keys and values: "float32", "bfloat16", or None for bfloat16 beside weights that
    are bfloat16 or int8. Read when a cache is made."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the original returns; with `use_cache`, also a cache that the library fills.

        Args:
            input_ids: [batch, seq]; or inputs_embeds [batch, seq, hidden].
            attention_mask: [batch, earlier + seq], zero for padding on either side.
            position_ids: [batch, seq].
            inputs_embeds: see input_ids.
            use_cache: whether to return a cache; None for the default of the config.
            encoder_hidden_states: [batch, source, hidden], read at the first call with a cache.
            encoder_attention_mask: [batch, source].
            kwargs: other arguments of the original; among them the cache of an earlier call
                (`past_key_values`, or `cache` in newer versions of transformers).

        Raises:
            UsageError: for ids, positions or caches that do not fit the model.
        """
        name = "cache" if "cache" in kwargs else "past_key_values"
        cache = kwargs.pop(name, None)
        if use_cache is None:
            use_cache = bool(getattr(self.config, "use_cache", False)) or cache is not None
        arguments = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            name: cache,
            **kwargs,
        }
        # Not every original has every argument.
        arguments = {key: value for key, value in arguments.items() if value is not None}
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # one graph of single layers
            return self.call_original(**arguments)
        first = inputs_embeds if input_ids is None else input_ids
        if first is None:
            raise UsageError("give either input_ids or inputs_embeds")
        layer = _cache_layer(cache)
        if self.on_gpu(first) and layer is None:
            return self.call_original(**arguments)
        reason = self.problem(first.device, kwargs)
        reason = reason or mask_problem(attention_mask) or mask_problem(encoder_attention_mask)
        crosses = self.stack.names.cross_attention is not None
        if not crosses and encoder_hidden_states is not None:
            reason = "encoder_hidden_states were given"
        if attention_mask is None and not use_cache and is_packed(position_ids):
            reason = "position_ids are those of several sequences in a row"
        if layer is None and not _replaceable(cache):
            reason = f"a {type(cache).__name__} was given"
        if reason:
            if layer is not None:
                raise UsageError(f"a native cache cannot go on layer by layer, but {reason}")
            warnings.warn(f"decoder layers run one by one: {reason}", stacklevel=2)
            return self.call_original(**arguments)
        if use_cache and layer is None:
            from sparse_engine.nn.native.cache import NativeCacheLayer, fill_cache

            layer = NativeCacheLayer(self._new_cache(len(first)), self)
            cache = fill_cache(cache, layer)
        memory = None
        if crosses:
            memory = self.encode_memory(encoder_hidden_states, encoder_attention_mask, layer)
        y = self.decode(input_ids, inputs_embeds, attention_mask, position_ids, layer, memory)
        return _output(y, cache if use_cache else None, kwargs.get("return_dict") is not False)

    def _new_cache(self, sequences: int, memory: bool = False) -> _core.KvCache:
        """An empty cache for so many sequences, or an empty memory of cross attention."""
        dtype = self.cache_dtype
        if dtype is None:
            dtype = "float32" if self.weight_dtypes() <= {torch.float32} else "bfloat16"
        native = self.native()
        return _core.KvCache(native.memory_heads if memory else native.kv_heads, sequences, dtype)

    def encode_memory(
        self, states: Tensor | None, mask: Tensor | None, layer: NativeCacheLayer | None
    ) -> _core.KvCache:
        """Keys and values of an encoder's states, computed once for each cache.

        Args:
            states: [batch, source, hidden].
            mask: [batch, source], zero for padding; None for no padding.
            layer: the cache that keeps the memory; None without a cache.
        """
        if layer is not None and layer.memory is not None:
            return layer.memory
        if states is None:
            raise UsageError("this decoder needs encoder_hidden_states")
        if states.dim() != 3 or states.shape[-1] != self.stack.hidden:
            raise UsageError(f"encoder_hidden_states must be [batch, source, {self.stack.hidden}]")
        refuse_gradients(states)
        batch, source = states.shape[:2]
        exists = torch.ones(batch, source, dtype=torch.bool) if mask is None else mask != 0
        if tuple(exists.shape) != (batch, source):
            raise UsageError(f"encoder_attention_mask must be {[batch, source]}")
        lengths = exists.sum(1).tolist()
        if 0 in lengths:
            raise UsageError(f"sequence {lengths.index(0)} of the encoder is masked as a whole")
        rows = states.detach().float()[exists].contiguous()
        memory = self._new_cache(batch, memory=True)
        self.native().encode_memory(rows.numpy(), lengths, memory)
        if layer is not None:
            layer.memory = memory
        return memory

    def decode(
        self,
        ids: Tensor | None,
        embedded: Tensor | None,
        mask: Tensor | None,
        positions: Tensor | None,
        layer: NativeCacheLayer | None,
        memory: _core.KvCache | None = None,
    ) -> Tensor:
        """States [batch, seq, hidden] of new tokens, zeros for padding; the cache grows by them.

        Args:
            ids, embedded, mask, positions: as `forward` has them.
            layer: the cache; None for none.
            memory: what `encode_memory` returned, for cross attention.
        """
        shape = (ids if embedded is None else embedded[..., 0]).shape  # type: ignore[union-attr]
        if len(shape) != 2:
            raise UsageError(f"ids are {list(shape)}, expected [batch, seq]")
        batch, seq = shape
        before = 0
        if layer is not None:
            before = layer.get_seq_length()
            if layer.owner is not self:
                raise UsageError("the cache is another model's")
            if layer.batch_size != batch:
                raise UsageError(f"the cache has {layer.batch_size} sequences, ids {batch}")
        exists = new_tokens(mask, batch, seq, None if layer is None else layer.kept)
        self._check_holes(exists)
        new = exists[:, before:]
        if positions is None and self.stack.positions_from_mask:
            positions = (exists.long().cumsum(1) - 1).clamp(min=0)[:, before:]
        elif positions is None:
            positions = torch.arange(before, before + seq)
        positions = positions.to(torch.int64).expand(batch, seq)
        self._check_positions(positions)
        x = self._embed(ids, embedded, positions)
        refuse_gradients(x)
        present, index = new.reshape(-1), None
        rows, places = x.detach().float().reshape(batch * seq, -1), positions.reshape(-1)
        if not bool(present.all()):
            index = present.nonzero().squeeze(1)
            rows, places = rows[index], places[index]
        rows, places = rows.contiguous(), places.contiguous()
        y = torch.empty_like(rows)
        cache = None if layer is None else layer.native
        try:
            self.native().run(
                rows.numpy(), new.sum(1).tolist(), y.numpy(), cache, places.numpy(), memory
            )
        except BaseException:  # out of memory, in the middle of a long prompt
            if layer is not None:
                layer.native.crop(layer.kept.sum(1).tolist())
            raise
        if layer is not None:
            layer.kept = exists
        if index is not None:
            y = y.new_zeros(batch * seq, y.shape[1]).index_copy_(0, index, y)
        return y.to(x.dtype).view(batch, seq, -1)

    def _check_holes(self, exists: Tensor) -> None:
        """Refuse padding between tokens where their distance counts."""
        counts = self.stack.has_position_bias or 0 < self.stack.shortest_window < exists.shape[1]
        if counts and has_holes(exists):
            raise UsageError(
                "padding is between tokens: pad on the left where distances or windows count"
            )


def _cache_layer(cache: Any) -> NativeCacheLayer | None:
    if cache is None:
        return None
    from sparse_engine.nn.native.cache import native_cache_layer

    return native_cache_layer(cache)


def _replaceable(cache: Any) -> bool:
    """Whether there is no cache yet, or an empty one of transformers' default kinds."""
    if cache is None:
        return True
    kinds = ("DynamicCache", "EncoderDecoderCache")
    return type(cache).__name__ in kinds and cache.get_seq_length() == 0


def _output(y: Tensor, cache: Any, as_dict: bool) -> Any:
    if not as_dict:
        return (y,) if cache is None else (y, cache)
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as Output

    name = "cache" if "cache" in {field.name for field in fields(Output)} else "past_key_values"
    caches: dict[str, Any] = {name: cache}
    return Output(last_hidden_state=y, **caches)
