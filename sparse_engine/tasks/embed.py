"""Text to embedding: a tokenizer, any Hugging Face encoder (sparse or dense), and its pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UnsupportedModelError
from sparse_engine.tasks.sentence_modules import SentenceModules
from sparse_engine.tasks.text_model import TextModel


@contextmanager
def _progress(texts: int, show: bool | None) -> Iterator[Callable[[int], object]]:
    """A bar with the time left: after two seconds on a terminal, at once, or never."""
    if show is False:
        yield lambda count: None
        return
    from tqdm import tqdm

    options: dict[str, Any] = {"disable": None, "delay": 2} if show is None else {}
    with tqdm(total=texts, unit="text", **options) as bar:
        yield bar.update


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
        self.modules = SentenceModules.of(folder)
        one = torch.zeros(1, 1, dtype=torch.int64)
        self.hidden = int(self.modules(self.hidden_states(one, one + 1), one + 1).shape[-1])

    task = "embedding"

    @property
    def info(self) -> dict[str, Any]:
        """Task, limits, width and pooling of the model, as plain values."""
        return super().info | {
            "hidden": self.hidden,
            "pooling": self.modules.pooling.name,
            "pooling_from": self.modules.source,
            "normalize": self.modules.normalizes,
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

    def embed_checked(
        self,
        rows: Sequence[Sequence[int]],
        prompt: int = 0,
        batch_size: int | None = None,
        show_progress: bool | None = False,
    ) -> Tensor:
        """Embeddings float32 [n, hidden] of rows that `encode` or `check_ids` has checked.

        Rows of similar length run together.

        Args:
            rows: token ids.
            prompt: tokens of a prompt at the beginning of each row.
            batch_size: rows in a call of the model; None for that of the task.
            show_progress: whether to draw a bar; None for a terminal, after two seconds.
        """
        out = torch.empty(len(rows), self.hidden)  # an ordinary tensor: training on it is allowed
        with _progress(len(rows), show_progress) as advance:
            for chosen, ids, mask in self.batches(rows, batch_size):
                with torch.inference_mode():
                    out[chosen] = self.modules(self.hidden_states(ids, mask), mask, prompt)
                advance(len(chosen))
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
