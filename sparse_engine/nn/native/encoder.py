"""NativeEncoder: a stack of encoder layers of a known family, run by the library in one call."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import UsageError
from sparse_engine.models.inputs import has_argument
from sparse_engine.nn.native.masks import has_holes, key_mask
from sparse_engine.nn.native.stack import NativeStack, refuse_gradients


class NativeEncoder(NativeStack):
    """A proxy of the module that runs a model's encoder layers.

    Activations stay in panels of tokens from the first layer to the last. Tokens that the mask
    hides are left out of the computation, and are zeros in the output.
    """

    def forward(
        self,
        hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the original returns, without attentions or hidden states of single layers.

        Args:
            hidden_states: [batch, seq, hidden].
            attention_mask: [batch, seq] or [batch, 1, seq or 1, seq], boolean or additive, the same
                for every query.
            input_ids: [batch, seq], for an encoder that embeds tokens itself; or
            inputs_embeds: [batch, seq, hidden].
            position_ids: [batch, seq] or [1, seq], of rotary positions.
            token_type_ids: [batch, seq], for an encoder that has embeddings of them.
            kwargs: other arguments of the original.

        Raises:
            UsageError: for a sequence that is masked as a whole, for ids outside the vocabulary, or
                if gradients are needed.
        """
        embeds = self.stack.embedding is not None
        if embeds and hidden_states is not None:  # by position
            input_ids, hidden_states = hidden_states, None
        given = {"position_ids": position_ids, "token_type_ids": token_type_ids}
        given = {name: value for name, value in given.items() if value is not None}
        arguments: dict[str, Any] = {"attention_mask": attention_mask, **given, **kwargs}
        arguments |= (
            {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
            if embeds
            else {"hidden_states": hidden_states}
        )
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # one graph of single layers
            return self.call_original(**arguments)
        source = next((t for t in (hidden_states, input_ids, inputs_embeds) if t is not None), None)
        if source is None:
            raise UsageError("give either input_ids or inputs_embeds")
        if self.on_gpu(source):
            return self.call_original(**arguments)
        unused = {name: value for name, value in given.items() if not self._reads(name)}
        reason = self.problem(source.device, kwargs | unused)
        cache_arguments = ("cache", "past_key_values", "use_cache")
        if reason is None and any(kwargs.get(name) for name in cache_arguments):
            reason = "a cache was asked for"
        if reason:
            warnings.warn(f"encoder layers run one by one: {reason}", stacklevel=2)
            return self.call_original(**arguments)
        exists = None if attention_mask is None else key_mask(attention_mask)
        if position_ids is None:
            position_ids = torch.arange(source.shape[1])[None]
        if embeds and source.shape[1] > self.stack.reach:
            raise UsageError(f"a sequence is longer than {self.stack.reach} positions")
        x = self._input(hidden_states, input_ids, inputs_embeds, position_ids, token_type_ids)
        y = self.encode(x, exists, position_ids)
        pooler = getattr(self, "pooler", None)
        pooled = () if pooler is None else (pooler(y),)
        if kwargs.get("return_dict") is False:
            return (y, *pooled)
        from transformers import modeling_outputs

        if pooled:
            return modeling_outputs.BaseModelOutputWithPooling(y, *pooled)
        return modeling_outputs.BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=y)

    def _reads(self, argument: str) -> bool:
        """Whether a call depends on position_ids or token_type_ids."""
        if argument == "position_ids" and self.stack.has_rotary:
            return True
        name = self.stack.input_module
        return name is not None and has_argument(self.get_submodule(name), argument)

    def _input(
        self,
        hidden_states: Tensor | None,
        ids: Tensor | None,
        embedded: Tensor | None,
        positions: Tensor,
        types: Tensor | None,
    ) -> Tensor:
        """The input of the first layer [batch, seq, hidden]; arguments as `forward` has them."""
        name = self.stack.input_module
        if name is None:
            if hidden_states is not None:
                return hidden_states
            source = ids if ids is not None else embedded
            assert source is not None
            return self._embed(ids, embedded, positions.expand(source.shape[:2]))
        module = self.get_submodule(name)
        if hidden_states is not None:
            y: Tensor = module(hidden_states)
            return y
        if (ids is None) == (embedded is None):
            raise UsageError("give either input_ids or inputs_embeds")
        if ids is not None:
            self._check_ids(ids)
        given = {
            "input_ids": ids,
            "inputs_embeds": embedded,
            "position_ids": positions,
            "token_type_ids": types,
        }
        y = module(**{key: value for key, value in given.items() if has_argument(module, key)})
        return y

    def encode(
        self, x: Tensor, exists: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Run all layers.

        Args:
            x: [batch, seq, hidden].
            exists: boolean [batch, seq], false for padding; None for no padding.
            positions: [batch, seq] or [1, seq], of rotary positions; None for 0, 1, 2...

        Returns:
            A tensor like x, zeros for padding.
        """
        refuse_gradients(x)
        if x.dim() != 3 or x.shape[-1] != self.stack.hidden:
            raise UsageError(f"x is {list(x.shape)}, expected [batch, seq, {self.stack.hidden}]")
        batch, seq, hidden = x.shape
        rows = x.detach().float().reshape(-1, hidden)
        if exists is None or bool(exists.all()):
            lengths, index = [seq] * batch, None
        else:
            if tuple(exists.shape) != (batch, seq):
                raise UsageError(f"the mask is {list(exists.shape)}, expected {[batch, seq]}")
            lengths = exists.sum(1).tolist()
            if 0 in lengths:
                raise UsageError(f"sequence {lengths.index(0)} is masked as a whole")
            window = 0 < self.stack.shortest_window < seq
            if (self.stack.has_position_bias or window) and has_holes(exists):
                raise UsageError("a mask with holes does not fit relative positions and windows")
            index = exists.reshape(-1).nonzero().squeeze(1)
            rows = rows[index]
        if self.stack.has_position_bias and max(lengths, default=0) > self.stack.reach:
            raise UsageError(f"a sequence is longer than {self.stack.reach} positions")
        rows, places = rows.contiguous(), None
        if self.stack.has_rotary:
            positions = torch.arange(seq)[None] if positions is None else positions
            self._check_positions(positions)
            flat = positions.to(torch.int64).expand(batch, seq).reshape(-1)
            places = (flat if index is None else flat[index]).contiguous().numpy()
        y = torch.empty_like(rows)
        self.native().run(rows.numpy(), lengths, y.numpy(), None, places)
        if index is not None:
            y = y.new_zeros(batch * seq, hidden).index_copy_(0, index, y)
        return y.to(x.dtype).view(batch, seq, hidden)
