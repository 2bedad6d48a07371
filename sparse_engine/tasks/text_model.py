"""A model with the tokenizer of its folder: texts to token ids, and the limits of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import UnsupportedModelError, UsageError
from sparse_engine.io.model_files import ModelFiles
from sparse_engine.models.inputs import positions, vocabulary
from sparse_engine.text.batches import batches_by_length, padded
from sparse_engine.text.tokenizer import encode, load_tokenizer

# A text with more characters than this for each token of the model's limit is refused before it is
# tokenized. English has four or five characters a token.
CHARACTERS_A_TOKEN = 64


class InputError(UsageError):
    """A text or a list of token ids that is empty, too long or not in the vocabulary."""


class TextModel:
    """A model with the tokenizer of its folder.

    Args:
        model: put into eval mode.
        folder: holds tokenizer.json and config.json, and sentence_bert_config.json if the model
            has one.
        batch_size: texts in a call of the model.

    Raises InvalidFileError for a folder that lacks the tokenizer or holds damaged files.
    """

    task = "text"
    characters_a_token = CHARACTERS_A_TOKEN

    def __init__(self, model: nn.Module, folder: str | Path, batch_size: int = 32) -> None:
        folder = Path(folder)
        self.model: nn.Module = model.eval()
        self.batch_size = batch_size
        self.device = next(chain(model.parameters(), model.buffers()), torch.empty(0)).device
        self.tokenizer = load_tokenizer(folder)
        files = ModelFiles(folder)
        sentence = files.json("sentence_bert_config.json") or {}
        self.config = files.json("config.json") or {}
        self.lowercase = bool(sentence.get("do_lower_case"))
        self.vocabulary = _vocabulary(self.model, self.config)
        self.max_length = _max_length(self.model, self.config, sentence)
        pad = self.config.get("pad_token_id")
        self.pad = pad if type(pad) is int and 0 <= pad < self.vocabulary else 0

    def warm_up(self) -> None:
        """Compute one small answer, so that the first request is as fast as later ones."""

    @property
    def info(self) -> dict[str, Any]:
        """Task, limits and options of the model, as plain values."""
        return {"task": self.task, "max_length": self.max_length, "vocabulary": self.vocabulary}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with the special tokens that the tokenizer adds.

        Raises InputError for a text that is not Unicode, longer than `max_length` tokens, or longer
        than CHARACTERS_A_TOKEN times as many characters.
        """
        rows = [encoding.ids for encoding in self.encodings(self.clean(texts))]
        self.check_ids(rows)
        return rows

    def encodings(self, texts: Sequence[Any]) -> list[Any]:
        """Encodings of cleaned texts, or of pairs; InputError where the tokenizer fails."""
        try:
            return encode(self.tokenizer, texts)
        except UsageError as error:
            raise InputError(str(error)) from error

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Texts in the case that the model was trained on.

        Raises InputError for a text that is too long or not Unicode.
        """
        if isinstance(texts, str):
            raise UsageError("texts is one str: give a list of them, as [text]")
        if self.lowercase:
            texts = [text.lower() for text in texts]
        for index, text in enumerate(texts):
            if len(text) > self.max_length * CHARACTERS_A_TOKEN:
                raise InputError(
                    f"text {index} has {len(text)} characters, the model takes at most "
                    f"{self.max_length} tokens: shorten or split it"
                )
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"text {index} holds a lone surrogate: not Unicode") from error
        return list(texts)

    def check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise InputError for a row that is empty, too long or not in the vocabulary."""
        for index, row in enumerate(rows):
            if not row:
                raise InputError(f"input {index} has no tokens")
            if len(row) > self.max_length:
                raise InputError(
                    f"input {index} has {len(row)} tokens, the model takes at most "
                    f"{self.max_length}: shorten or split it"
                )
            if min(row) < 0 or max(row) >= self.vocabulary:
                wrong = next(i for i in row if not 0 <= i < self.vocabulary)
                raise InputError(
                    f"input {index} has token id {wrong}, the vocabulary is 0 to "
                    f"{self.vocabulary - 1}"
                )

    def batches(
        self, rows: Sequence[Sequence[int]], size: int | None = None
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Batches of `size` rows of similar length; None for `batch_size`.

        Yields the rows' indices, their token ids and attention mask, both int64 [n, longest].
        """
        for chosen in batches_by_length(list(map(len, rows)), size or self.batch_size):
            yield chosen, *padded([rows[i] for i in chosen], self.pad)


def _vocabulary(model: nn.Module, config: dict[str, Any]) -> int:
    """Number of token ids that the model has an embedding for."""
    rows = vocabulary(model) or config.get("vocab_size")
    if not isinstance(rows, int) or rows < 1:
        raise UnsupportedModelError("neither the model nor config.json has the vocabulary's size")
    return rows


def _max_length(model: nn.Module, config: dict[str, Any], sentence: dict[str, Any]) -> int:
    """Longest text in tokens: the least of the limits in the files and of the position table."""
    # T5 has relative positions, and was trained on 512 tokens; its files call them n_positions.
    relative = 512 if config.get("model_type") == "t5" else None
    candidates = [
        config.get("max_position_embeddings"),
        config.get("n_positions", relative),
        sentence.get("max_seq_length"),
        positions(model),
    ]
    limits = [limit for limit in candidates if type(limit) is int and limit > 0]
    if not limits:
        raise UnsupportedModelError(
            "config.json has no max_position_embeddings and sentence_bert_config.json no "
            "max_seq_length: the longest text is not known"
        )
    return min(limits)
