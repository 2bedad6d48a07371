"""Text to embedding: a tokenizer, any Hugging Face encoder (sparse or dense), and its pooling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.tasks.pooling import Pooling
from sparse_engine.tasks.text_model import TextModel


class Embedder(TextModel):
    """An encoder with the tokenizer and pooling of its folder.

    Args:
        model: returns `last_hidden_state` [n, seq, hidden] for `input_ids` and `attention_mask`;
            of a model with a head the part below the head is used.
        folder: holds tokenizer.json and config.json, and where the model has them modules.json,
            1_Pooling/config.json and sentence_bert_config.json.
        batch_size: texts in a call of the model.

    Raises InvalidFileError for a folder that lacks the tokenizer or holds damaged files,
    UnsupportedModelError for a model or pooling that gives no embedding.

    >>> embedder = Embedder(se.load("out/"), "out/")
    >>> embedder.embed(["one text", "another"]).shape
    torch.Size([2, 384])
    """

    def __init__(self, model: nn.Module, folder: str | Path, batch_size: int = 32) -> None:
        base = getattr(model, "base_model", model)
        super().__init__(base if isinstance(base, nn.Module) else model, folder, batch_size)
        self.pooling = Pooling.of(Path(folder))
        one = torch.zeros(1, 1, dtype=torch.int64)
        self.hidden = int(self.hidden_states(one, one + 1).shape[-1])

    task = "embedding"

    @property
    def info(self) -> dict[str, Any]:
        """Task, limits, width and pooling of the model, as plain values."""
        return super().info | {
            "hidden": self.hidden,
            "pooling": self.pooling.mode,
            "pooling_from": self.pooling.source,
            "normalize": self.pooling.normalize,
        }

    def warm_up(self) -> None:
        """Embed one small text."""
        self.embed(["warm up"])

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings float32 [n, hidden] on the CPU, in the order of `texts`.

        Raises InputError for a text that is longer than `max_length` tokens: nothing is cut off.
        """
        return self.embed_checked(self.encode(texts))

    def embed_ids(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Embeddings float32 [n, hidden] of token ids; raises InputError for ids out of range."""
        self.check_ids(rows)
        return self.embed_checked(rows)

    def embed_checked(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Embeddings float32 [n, hidden] of rows that `encode` or `check_ids` has checked.

        Rows of similar length run together.
        """
        out = torch.empty(len(rows), self.hidden)  # an ordinary tensor: training on it is allowed
        for chosen, ids, mask in self.batches(rows):
            with torch.inference_mode():
                out[chosen] = self.pooling(self.hidden_states(ids, mask), mask)
        return out

    @torch.inference_mode()
    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states float32 [n, seq, hidden] on the CPU; ids and mask int64 [n, seq]."""
        output = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        hidden = getattr(output, "last_hidden_state", None)
        if not isinstance(hidden, Tensor) or hidden.shape[:-1] != ids.shape:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} gives no last_hidden_state [n, seq, hidden]: "
                "embeddings need an encoder"
            )
        return hidden.float().cpu()
