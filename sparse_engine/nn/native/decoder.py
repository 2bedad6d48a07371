"""NativeDecoder: embeddings, layers and last norm of a decoder, run by the library in one call."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_engine import _core
from sparse_engine.errors import UsageError
from sparse_engine.nn.native.stack import NativeStack, refuse_gradients

if TYPE_CHECKING:
    from sparse_engine.nn.native.cache import NativeLayer


class NativeDecoder(NativeStack):
    """Stands in for the decoder of a causal language model, and holds the same submodules.

    Prompts run on panels of tokens, up to seven new tokens at a time on kernels that read each
    weight once; keys and values stay in the library. `generate` of transformers works as it does,
    beams and sampling included.
    """

    # What keys and values are kept in: "float32", "bfloat16", or None for bfloat16 beside weights
    # that are bfloat16 or int8. Read when a cache is made.
    cache_dtype: str | None = None

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
        """What the original returns; with `use_cache`, a cache that the library fills is part of it.

        input_ids: [batch, seq]; attention_mask: [batch, earlier + seq], zero for padding on either
        side; position_ids: [batch, seq]; cache (past_key_values): what an earlier call returned;
        encoder_hidden_states: [batch, source, hidden], read at the first call with a cache, with
        encoder_attention_mask [batch, source].
        Raises UsageError for ids, positions or caches that do not fit the model.
        """
        name = "cache" if "cache" in kwargs else "past_key_values"
        cache = kwargs.pop(name, None)
        if use_cache is None:
            use_cache = bool(getattr(self.config, "use_cache", False)) or cache is not None
        told = {
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
        given = {key: value for key, value in told.items() if value is not None}
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # one graph of single layers
            return self.original(**given)
        first = inputs_embeds if input_ids is None else input_ids
        if first is None:
            raise UsageError("give either input_ids or inputs_embeds")
        layer = _native_layer(cache)
        if self.on_gpu(first) and layer is None:
            return self.original(**given)
        reason = self.problem(first.device, kwargs)
        reason = reason or _mask_problem(attention_mask) or _mask_problem(encoder_attention_mask)
        crosses = self.stack.layer.cross_query is not None
        if not crosses and encoder_hidden_states is not None:
            reason = "encoder_hidden_states were given"
        if attention_mask is None and not use_cache and _packed(position_ids):
            reason = "position_ids are those of several sequences in a row"
        if layer is None and not _replaceable(cache):
            reason = f"a {type(cache).__name__} was given"
        if reason:
            if layer is not None:
                raise UsageError(f"a native cache cannot go on layer by layer, but {reason}")
            warnings.warn(f"decoder layers run one by one: {reason}", stacklevel=2)
            return self.original(**given)
        if use_cache and layer is None:
            from sparse_engine.nn.native.cache import NativeLayer, filled

            layer = NativeLayer(self._room(len(first)), self)
            cache = filled(cache, layer)
        memory = None
        if crosses:
            memory = self.encode_memory(encoder_hidden_states, encoder_attention_mask, layer)
        y = self.decode(input_ids, inputs_embeds, attention_mask, position_ids, layer, memory)
        return _output(y, cache if use_cache else None, kwargs.get("return_dict") is not False)

    def _room(self, sequences: int) -> _core.KvCache:
        """An empty cache for so many sequences."""
        stack = self.stack
        heads, dtype = stack.key_heads or stack.heads, self.cache_dtype
        if dtype is None:
            dtype = "float32" if self.weight_dtypes() <= {torch.float32} else "bfloat16"
        return _core.KvCache(len(stack.blocks), heads, stack.head_size, sequences, dtype)

    def encode_memory(
        self, states: Tensor | None, mask: Tensor | None, layer: NativeLayer | None
    ) -> _core.KvCache:
        """Keys and values of an encoder's states [batch, source, hidden], once a cache."""
        if layer is not None and layer.memory is not None:
            return layer.memory
        if states is None:
            raise UsageError("this decoder needs encoder_hidden_states")
        if states.dim() != 3 or states.shape[-1] != self.stack.hidden:
            raise UsageError(f"encoder_hidden_states must be [batch, source, {self.stack.hidden}]")
        refuse_gradients(states)
        batch, source = states.shape[:2]
        keep = torch.ones(batch, source, dtype=torch.bool) if mask is None else mask != 0
        if tuple(keep.shape) != (batch, source):
            raise UsageError(f"encoder_attention_mask must be {[batch, source]}")
        lengths = keep.sum(1).tolist()
        if 0 in lengths:
            raise UsageError(f"sequence {lengths.index(0)} of the encoder is masked as a whole")
        rows = states.detach().float()[keep].contiguous()
        memory = self._room(batch)
        self.native().remember(rows.numpy(), lengths, memory)
        if layer is not None:
            layer.memory = memory
        return memory

    def decode(
        self,
        ids: Tensor | None,
        embedded: Tensor | None,
        mask: Tensor | None,
        positions: Tensor | None,
        layer: NativeLayer | None,
        memory: _core.KvCache | None = None,
    ) -> Tensor:
        """States [batch, seq, hidden] of new tokens, zeros for padding; the cache grows by them."""
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
        keep = self._kept(mask, batch, seq, before, layer)
        if positions is None:
            positions = torch.arange(before, before + seq)
        positions = positions.to(torch.int64).expand(batch, seq)
        reach = self.stack.reach
        last = int(positions.max()) if positions.numel() else 0
        if positions.numel() and not 0 <= int(positions.min()) <= last < reach:
            raise UsageError(
                f"position {last} is past the model's {reach} positions (max_position_embeddings)"
            )
        self.reach_for(last + 1)
        x = self._embed(ids, embedded, positions)
        refuse_gradients(x)
        flat, where = keep.reshape(-1), None
        rows, places = x.detach().float().reshape(batch * seq, -1), positions.reshape(-1)
        if not bool(flat.all()):
            where = flat.nonzero().squeeze(1)
            rows, places = rows[where], places[where]
        rows, places = rows.contiguous(), places.contiguous()
        y = torch.empty_like(rows)
        native = None if layer is None else layer.native
        try:
            self.native().run(
                rows.numpy(), keep.sum(1).tolist(), y.numpy(), native, places.numpy(), memory
            )
        except BaseException:  # out of memory, in the middle of a long prompt
            if layer is not None:
                layer.native.crop(layer.kept.sum(1).tolist())
            raise
        if layer is not None:
            layer.kept = torch.cat([layer.kept, keep], 1)
        if where is not None:
            y = y.new_zeros(batch * seq, y.shape[1]).index_copy_(0, where, y)
        return y.to(x.dtype).view(batch, seq, -1)

    def _kept(
        self, mask: Tensor | None, batch: int, seq: int, before: int, layer: NativeLayer | None
    ) -> Tensor:
        """Which new tokens exist, boolean [batch, seq]."""
        if mask is None:
            keep = torch.ones(batch, seq, dtype=torch.bool)
            self._check_holes(keep if layer is None else torch.cat([layer.kept, keep], 1))
            return keep
        if tuple(mask.shape) != (batch, before + seq):
            raise UsageError(f"the mask is {list(mask.shape)}, expected {[batch, before + seq]}")
        seen = mask != 0
        old, keep = seen[:, :before], seen[:, before:]
        self._check_holes(seen)
        if layer is not None and not torch.equal(old, layer.kept):
            raise UsageError("the mask hides other earlier tokens than when they were given")
        if seq and not bool(seen.any(1).all()):
            row = int(seen.any(1).int().argmin())
            raise UsageError(f"sequence {row} is masked as a whole")
        return keep

    def _check_holes(self, seen: Tensor) -> None:
        """Raise UsageError where padding lies between tokens whose distance counts: it is not kept."""
        window = self.stack.window
        counts = self.stack.position_bias is not None or 0 < window < seen.shape[1]
        if counts and bool((seen[:, 1:] > seen[:, :-1]).sum(1).gt(~seen[:, 0]).any()):
            raise UsageError(
                "padding lies between tokens: pad on the left where distances or windows count"
            )


def _native_layer(cache: Any) -> NativeLayer | None:
    if cache is None:
        return None
    from sparse_engine.nn.native.cache import native_layer

    return native_layer(cache)


def _replaceable(cache: Any) -> bool:
    """Whether there is no cache yet, or an empty one of transformers' default kinds."""
    if cache is None:
        return True
    kinds = ("DynamicCache", "EncoderDecoderCache")
    return type(cache).__name__ in kinds and cache.get_seq_length() == 0


def _packed(positions: Tensor | None) -> bool:
    """Whether positions do not rise by one: transformers then keeps such sequences apart."""
    return positions is not None and bool((positions.diff(dim=-1) != 1).any())


def _mask_problem(mask: object) -> str | None:
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
        return None
    return "the mask is not [batch, seq]"


def _output(y: Tensor, cache: Any, as_dict: bool) -> Any:
    if not as_dict:
        return (y,) if cache is None else (y, cache)
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as Output

    name = "cache" if "cache" in {field.name for field in fields(Output)} else "past_key_values"
    held: dict[str, Any] = {name: cache}
    return Output(last_hidden_state=y, **held)
