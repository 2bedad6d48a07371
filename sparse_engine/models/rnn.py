"""Language models, taggers and classifiers on recurrent networks, as models of transformers.

A folder with config.json, safetensors and a tokenizer is pruned, converted and served as any other.
Imports transformers, so only sparse_engine.io.hugging and code that builds such a model import it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    CausalLMOutputWithPast,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

CELLS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn_tanh": (nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
}
# The name that transformers has for the state of a model; it is another one since 5.24.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class RnnConfig(PretrainedConfig):
    """Sizes of a recurrent model.

    Args:
        vocab_size, embedding_size, hidden_size, num_hidden_layers: sizes of embedding and network.
        cell: lstm, gru, rnn_tanh or rnn_relu.
        bidirectional: whether a second network reads backwards; not for language models.
        inner_sizes: features of linear layers with a ReLU between the network and the classifier.
        cutoffs: of an adaptive softmax (Grave et al. 2017); empty for a full one.
        tie_word_embeddings: whether the language model's head is the embedding.
        dropout: share of the features that a training drops before, between and after the layers of
            the network (Zaremba et al. 2014, arXiv:1409.2329).
        max_position_embeddings: the longest text; the network itself has no limit.
        pad_token_id: the id of padding.
        kwargs: other options of transformers.
    """

    model_type = "sparse_engine_rnn"

    def __init__(
        self,
        vocab_size: int = 1000,
        embedding_size: int = 64,
        hidden_size: int = 64,
        num_hidden_layers: int = 1,
        cell: str = "lstm",
        bidirectional: bool = False,
        inner_sizes: tuple[int, ...] = (),
        cutoffs: tuple[int, ...] = (),
        tie_word_embeddings: bool = False,
        dropout: float = 0.0,
        max_position_embeddings: int = 4096,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        if cell not in CELLS:
            raise ValueError(f"cell {cell!r}: use one of {', '.join(CELLS)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout}: expected at least 0 and less than 1")
        if tie_word_embeddings and (cutoffs or embedding_size != hidden_size):
            raise ValueError(
                "tie_word_embeddings needs embedding_size equal to hidden_size, and no cutoffs"
            )
        kwargs |= {"pad_token_id": pad_token_id, "tie_word_embeddings": tie_word_embeddings}
        super().__init__(**kwargs)
        self.vocab_size, self.embedding_size = vocab_size, embedding_size
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.cell, self.bidirectional = cell, bidirectional
        self.inner_sizes, self.cutoffs = list(inner_sizes), list(cutoffs)
        self.dropout = dropout
        self.max_position_embeddings = max_position_embeddings


class RnnPreTrainedModel(PreTrainedModel):
    """An embedding and a recurrent network, of which heads read the states."""

    config_class = RnnConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"

    def __init__(self, config: RnnConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        cls: Any
        cls, extra = CELLS[config.cell]
        self.rnn: nn.Module = cls(
            config.embedding_size,
            config.hidden_size,
            config.num_hidden_layers,
            batch_first=True,
            bidirectional=config.bidirectional,
            dropout=config.dropout if config.num_hidden_layers > 1 else 0.0,
            **extra,
        )

    def dropped(self, x: Tensor) -> Tensor:
        """Features with the dropout of the training."""
        return F.dropout(x, self.config.dropout, self.training)

    @property
    def width(self) -> int:
        """Features of a state, both directions together."""
        return int(self.config.hidden_size) * (2 if self.config.bidirectional else 1)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of token ids."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of token ids."""
        self.embedding = value  # type: ignore[assignment]

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the initialisation of torch."""


class _RnnWithClassifier(RnnPreTrainedModel):
    """Linear layers, with a ReLU in between, on the states of the network."""

    def __init__(self, config: RnnConfig) -> None:
        super().__init__(config)
        widths = [self.width, *config.inner_sizes]
        self.inner = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.classifier = nn.Linear(widths[-1], int(config.num_labels or 0))
        self.post_init()

    def _states(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """States [batch, seq, features]; padding, where attention_mask is 0, is on the right."""
        x = self.dropped(self.embedding(input_ids))
        if attention_mask is None or bool(attention_mask.all()):
            states: Tensor = self.rnn(x)[0]
            return states
        # A network that reads backwards must begin at the end of each text.
        lengths = _lengths(attention_mask).clamp(min=1)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, total_length=x.shape[1]
        )
        return states

    def _logits(self, states: Tensor) -> Tensor:
        states = self.dropped(states)
        for layer in self.inner:
            states = F.relu(layer(states))
        logits: Tensor = self.classifier(states)
        return logits


class RnnForTokenClassification(_RnnWithClassifier):
    """A label for each token (Huang, Xu, Yu 2015, without the random field)."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> TokenClassifierOutput:
        """logits [batch, seq, labels]; padding, where attention_mask is 0, is on the right."""
        return TokenClassifierOutput(logits=self._logits(self._states(input_ids, attention_mask)))


class RnnForSequenceClassification(_RnnWithClassifier):
    """A label for each text, from the largest state of each unit (Lai et al. 2015, AAAI)."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """logits [batch, labels]; padding, where attention_mask is 0, is on the right."""
        states = self._states(input_ids, attention_mask)
        if attention_mask is not None:
            padding = attention_mask == 0
            padding[:, 0] = False  # an empty text has the state of its padding
            states = states.masked_fill(padding[..., None], -torch.inf)
        return SequenceClassifierOutput(logits=self._logits(states.amax(1)))


class RnnForCausalLM(RnnPreTrainedModel):
    """The next token (Mikolov et al. 2010)."""

    def __init__(self, config: RnnConfig) -> None:
        if config.bidirectional:
            raise ValueError("a language model reads in one direction")
        super().__init__(config)
        if config.cutoffs:
            self.softmax = nn.AdaptiveLogSoftmaxWithLoss(
                self.width, config.vocab_size, config.cutoffs
            )
        elif not config.tie_word_embeddings:
            self.lm_head = nn.Linear(self.width, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, seq, vocabulary] and, with `use_cache`, the state after the last token.

        Padding must be on the right: it changes no logits before it, but it would change the state.

        Raises:
            ValueError: for padding on the left, or padding with `use_cache`.
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            _lengths(attention_mask)
            if use_cache:
                raise ValueError("texts of several lengths have no state to go on from together")
        states, last = self.rnn(
            self.dropped(self.embedding(input_ids)), past_key_values if cache is None else cache
        )
        kept: dict[str, Any] = {CACHE: last if use_cache else None}
        return CausalLMOutputWithPast(logits=self._scores(self.dropped(states)), **kept)

    def _scores(self, states: Tensor) -> Tensor:
        if self.config.cutoffs:
            flat: Tensor = self.softmax.log_prob(states.flatten(0, 1))
            return flat.unflatten(0, states.shape[:2])
        if self.config.tie_word_embeddings:
            return F.linear(states, self.embedding.weight)
        scores: Tensor = self.lm_head(states)
        return scores


def _lengths(mask: Tensor) -> Tensor:
    """Lengths of texts that are padded on the right; raises ValueError for other padding."""
    seen = (mask != 0).cpu()
    lengths = seen.sum(1)
    if not torch.equal(seen, torch.arange(seen.shape[1]) < lengths[:, None]):
        raise ValueError("padding must be on the right")
    return lengths


MODELS = {
    cls.__name__: cls
    for cls in (RnnForTokenClassification, RnnForSequenceClassification, RnnForCausalLM)
}
