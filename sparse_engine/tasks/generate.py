"""Text that continues a prompt, or answers another text, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse_engine.errors import InvalidFileError
from sparse_engine.generation.decoding import decode
from sparse_engine.generation.detokenize import TextChunk, text_chunks
from sparse_engine.generation.sampling import Sampler, Sampling, logits_processors
from sparse_engine.tasks.text_model import InputError, TextModel


class Generator(TextModel):
    """A causal language model: GPT-2, Llama, Mistral, Qwen and others of transformers.

    >>> for chunk in Generator(model, folder).stream("Once upon a time"): print(chunk.text, end="")
    """

    task = "text-generation"

    def __init__(self, model: nn.Module, folder: str | Path, batch_size: int = 32) -> None:
        super().__init__(model, folder, batch_size)
        config = self.generation_config
        ends, start = self._setting("eos_token_id"), self._setting("decoder_start_token_id")
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        if not all(type(end) is int for end in ends):
            raise InvalidFileError(f"{folder}: eos_token_id {ends!s:.40} is no token id")
        self.ends = set(ends)
        self.start = self.pad if start is None else start
        if type(self.start) is not int or not 0 <= self.start < self.vocabulary:
            raise InvalidFileError(f"{folder}: decoder_start_token_id {start!s:.40} is no token id")
        try:  # transformers reads the values when it applies them
            processors = logits_processors(Sampling(), config)
            processors(torch.tensor([[0]]), torch.zeros(1, self.vocabulary))
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise InvalidFileError(f"{folder}/generation_config.json: {reason}") from None

    @property
    def generation_config(self) -> Any:
        """The model's generation config, or None."""
        return getattr(self.model, "generation_config", None)

    def _setting(self, name: str) -> Any:
        """A value of the generation config, else of config.json."""
        value = getattr(self.generation_config, name, None)
        return self.config.get(name) if value is None else value

    def warm_up(self) -> None:
        """Generate a few tokens."""
        tokens = self.tokens([0] * max(1, min(9, self.max_length - 3)))
        next(tokens, None), next(tokens, None)

    def generate(self, prompt: str, sampling: Sampling | None = None) -> str:
        """The text that follows `prompt`, without the prompt."""
        return "".join(chunk.text for chunk in self.stream(prompt, sampling))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt; raises InputError for one without tokens, or with too many."""
        (ids,) = self.encode([prompt])
        if self.room(ids) < 1:
            raise InputError(f"the prompt has {len(ids)} tokens, the model {self.max_length}")
        return ids

    def room(self, ids: Sequence[int]) -> int:
        """Number of tokens that may follow a prompt."""
        return self.max_length - len(ids)

    def stream(
        self, prompt: str | list[int], sampling: Sampling | None = None
    ) -> Iterator[TextChunk]:
        """The text that follows `prompt` in chunks; the last one has the reason for the end.

        Args:
            prompt: a text, or the token ids that `prompt_ids` made of one.
            sampling: how tokens are chosen; by default the likeliest.
        """
        sampling = sampling or Sampling()
        ids = self.prompt_ids(prompt) if isinstance(prompt, str) else prompt
        most = min(sampling.max_tokens, self.room(ids))
        tokens = self.tokens(ids, sampling)
        yield from text_chunks(
            tokens, self.tokenizer, self._context(ids), self.ends, sampling.stop, most
        )

    def _context(self, ids: list[int]) -> list[int]:
        """Token ids that the generated text continues."""
        return ids

    def tokens(self, ids: Sequence[int], sampling: Sampling | None = None) -> Iterator[int]:
        """Token ids that follow `ids`, up to the last position of the model."""
        sampler = Sampler(sampling or Sampling(), self.generation_config)
        yield from decode(self.model, ids, self.max_length, sampler)


class Rewriter(Generator):
    """An encoder-decoder model, which writes a text for the one it reads: translation,
    summaries.
    """

    task = "text2text-generation"

    def room(self, ids: Sequence[int]) -> int:
        """Number of tokens of an answer; the text that is read does not count."""
        return self.max_length - 1

    def _context(self, ids: list[int]) -> list[int]:
        return []

    def tokens(self, ids: Sequence[int], sampling: Sampling | None = None) -> Iterator[int]:
        """Token ids of the answer to the text `ids`."""
        with torch.inference_mode():
            rows = torch.tensor([list(ids)], device=self.device)
            states = self.model.get_encoder()(input_ids=rows)  # type: ignore[operator]
        sampler = Sampler(sampling or Sampling(), self.generation_config)
        arguments = {"encoder_outputs": states}
        yield from decode(
            self.model, [self.start], self.max_length, sampler, "decoder_input_ids", arguments
        )
