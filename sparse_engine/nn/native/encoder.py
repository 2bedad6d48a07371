"""NativeEncoder: a stack of encoder layers of a known family, run by the library in one call."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.nn.native.stack import NativeStack, refuse_gradients


class NativeEncoder(NativeStack):
    """Stands in for the module that runs a model's encoder layers, and holds the same submodules.

    Activations stay in panels of tokens from the first layer to the last; tokens that the mask hides
    are left out, and come back as zeros.
    """

    def forward(
        self,
        hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the original returns, without attentions or states in between.

        hidden_states: [batch, seq, hidden], or input_ids [batch, seq] or inputs_embeds of an encoder
        that embeds them itself; attention_mask: [batch, seq] or [batch, 1, seq or 1, seq], boolean or
        additive, the same for every query. Raises UsageError for a sequence that is masked as a
        whole, for ids outside the vocabulary, or if gradients are asked for.
        """
        embeds = self.stack.embedding is not None
        if embeds and hidden_states is not None:  # by position
            input_ids, hidden_states = hidden_states, None
        given: dict[str, Any] = {"attention_mask": attention_mask, **kwargs}
        given |= (
            {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
            if embeds
            else {"hidden_states": hidden_states}
        )
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # one graph of single layers
            return self.original(**given)
        source = next((t for t in (hidden_states, input_ids, inputs_embeds) if t is not None), None)
        if source is None:
            raise UsageError("give either input_ids or inputs_embeds")
        if self.on_gpu(source):
            return self.original(**given)
        reason = self.problem(source.device, kwargs)
        if reason is None and any(
            kwargs.get(name) for name in ("cache", "past_key_values", "use_cache")
        ):
            reason = "a cache was asked for"
        if reason:
            warnings.warn(f"encoder layers run one by one: {reason}", stacklevel=2)
            return self.original(**given)
        keep = None if attention_mask is None else key_mask(attention_mask)
        if embeds:
            places = torch.arange(source.shape[1]).expand(source.shape[:2])
            if source.shape[1] > self.stack.reach:
                raise UsageError(f"a sequence is longer than {self.stack.reach} positions")
            hidden_states = self._embed(input_ids, inputs_embeds, places)
        assert hidden_states is not None
        y = self.encode(hidden_states, keep)
        if kwargs.get("return_dict") is False:
            return (y,)
        from transformers import modeling_outputs

        return modeling_outputs.BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=y)

    def encode(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x [batch, seq, hidden] through all layers; `keep` [batch, seq] says which tokens exist."""
        refuse_gradients(x)
        if x.dim() != 3 or x.shape[-1] != self.stack.hidden:
            raise UsageError(f"x is {list(x.shape)}, expected [batch, seq, {self.stack.hidden}]")
        batch, seq, hidden = x.shape
        rows = x.detach().float().reshape(-1, hidden)
        if keep is None or bool(keep.all()):
            lengths, index = [seq] * batch, None
        else:
            if tuple(keep.shape) != (batch, seq):
                raise UsageError(f"the mask is {list(keep.shape)}, expected {[batch, seq]}")
            lengths = keep.sum(1).tolist()
            if 0 in lengths:
                raise UsageError(f"sequence {lengths.index(0)} is masked as a whole")
            index = keep.reshape(-1).nonzero().squeeze(1)
            first, last = keep.int().argmax(1), seq - 1 - keep.flip(1).int().argmax(1)
            if self.stack.position_bias and (last - first + 1).tolist() != lengths:
                raise UsageError("a mask with holes does not fit relative positions")
            rows = rows[index]
        if self.stack.position_bias and max(lengths, default=0) > self.stack.reach:
            raise UsageError(f"a sequence is longer than {self.stack.reach} positions")
        rows = rows.contiguous()
        y = torch.empty_like(rows)
        self.native().run(rows.numpy(), lengths, y.numpy())
        if index is not None:
            y = y.new_zeros(batch * seq, hidden).index_copy_(0, index, y)
        return y.to(x.dtype).view(batch, seq, hidden)


def key_mask(mask: Tensor) -> Tensor:
    """Which keys a mask [batch, seq] or [batch, 1, queries, seq] shows: boolean [batch, seq]."""
    if mask.dim() == 2:
        return mask != 0
    seen = mask == 0 if mask.is_floating_point() else mask != 0  # floats are added to scores
    if (
        seen.dim() != 4
        or seen.shape[1] != 1
        or not torch.equal(seen, seen[:, :, :1].expand_as(seen))
    ):
        raise UsageError("attention_mask must hide the same keys from every query and head")
    return seen[:, 0, 0]
