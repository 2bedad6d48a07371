"""Text that goes on from a prompt, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError, UsageError
from sparse_engine.tasks.text import InputError, TextModel

# Longest stop text in characters: every new token is compared with its beginnings.
MAX_STOP = 256


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; by default the likeliest.

    max_tokens:   new tokens at most
    temperature:  0 is greedy; scores are divided by it
    top_k, top_p: choose among the k likeliest, or the likeliest that make up p (0 and 1: all)
    repetition_penalty: scores of tokens that were there are divided by it (Keskar et al. 2019)
    stop:         texts at which to end; they are not part of the answer
    seed:         repeats exactly; None draws another text each time
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, fine, wanted in (
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature <= 100, "0 to 100"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 100, "more than 0, at most 100"),
            (
                "stop",
                all(0 < len(text) <= MAX_STOP for text in self.stop),
                f"texts of 1 to {MAX_STOP} characters",
            ),
        ):
            if not fine:
                shown = str(getattr(self, name))[:80]
                raise UsageError(f"{name} is {shown}: give {wanted}")


# Temperatures below this are as good as zero, and would overflow.
GREEDY = 1e-4
# Names that transformers has had for what a model keeps between calls.
CACHES = ("cache", "past_key_values")


@dataclass(frozen=True)
class Piece:
    """Some more text, the number of tokens so far, and why it was the last one: "stop", "length"."""

    text: str
    tokens: int
    finish: str | None = None


class Generator(TextModel):
    """A causal language model: GPT-2, Llama, Mistral, Qwen and others of transformers.

    >>> for piece in Generator(model, folder).stream("Once upon a time"): print(piece.text, end="")
    """

    task = "text-generation"
    ids_name = "input_ids"

    def __init__(self, model: nn.Module, folder: str | Path, batch_size: int = 32) -> None:
        super().__init__(model, folder, batch_size)
        told = getattr(model, "generation_config", None)
        ends, start = self._told("eos_token_id"), self._told("decoder_start_token_id")
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        if not all(type(end) is int for end in ends):
            raise InvalidFileError(f"{folder}: eos_token_id {ends!s:.40} is no token id")
        self.ends = set(ends)
        self.start = self.pad if start is None else start
        if type(self.start) is not int or not 0 <= self.start < self.vocabulary:
            raise InvalidFileError(f"{folder}: decoder_start_token_id {start!s:.40} is no token id")
        try:
            _processors(Sampling(), told)(torch.tensor([[0]]), torch.zeros(1, self.vocabulary))
        except Exception as error:  # whatever transformers makes of the values in the file
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise InvalidFileError(f"{folder}/generation_config.json: {reason}") from None

    def _told(self, name: str) -> Any:
        """A value of the generation config, or of config.json."""
        value = getattr(getattr(self.model, "generation_config", None), name, None)
        return self.config.get(name) if value is None else value

    def warm_up(self) -> None:
        """A few tokens."""
        tokens = self.tokens([0] * max(1, min(9, self.max_length - 3)))
        next(tokens, None), next(tokens, None)

    def generate(self, prompt: str, sampling: Sampling | None = None) -> str:
        """The text that follows `prompt`, which is not repeated."""
        return "".join(piece.text for piece in self.stream(prompt, sampling))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt; raises InputError for one without tokens, or with too many."""
        (ids,) = self.encode([prompt])
        if self.room(ids) < 1:
            raise InputError(f"the prompt has {len(ids)} tokens, the model {self.max_length}")
        return ids

    def room(self, ids: Sequence[int]) -> int:
        """Tokens that may follow a prompt."""
        return self.max_length - len(ids)

    def stream(self, prompt: str | list[int], sampling: Sampling | None = None) -> Iterator[Piece]:
        """The text that follows `prompt`, a text or what `prompt_ids` made of one, as it comes; the
        last piece says why it ended.
        """
        sampling = sampling or Sampling()
        ids = self.prompt_ids(prompt) if isinstance(prompt, str) else prompt
        room = min(sampling.max_tokens, self.room(ids))
        decoder, held, count = self._decoder(ids), "", 0
        for token in self.tokens(ids, sampling):
            if token in self.ends:
                yield Piece(held, count, "stop")
                return
            count += 1
            held += decoder.step(self.tokenizer, token) or ""
            at = [place for text in sampling.stop if (place := held.find(text)) >= 0]
            if at:
                yield Piece(held[: min(at)], count, "stop")
                return
            if count == room:
                break
            sure = len(held) - _begun(held, sampling.stop)
            if sure:
                yield Piece(held[:sure], count)
                held = held[sure:]
        yield Piece(held, count, "length")

    def _decoder(self, ids: list[int]) -> Any:
        """Told what stands before, so that a word that follows it keeps its space."""
        from tokenizers.decoders import DecodeStream

        return DecodeStream(ids=ids, skip_special_tokens=True)

    def tokens(self, ids: Sequence[int], sampling: Sampling | None = None) -> Iterator[int]:
        """Token ids that follow `ids`, without end but that of the model's positions."""
        yield from self._choose(list(ids), self.max_length, sampling or Sampling(), {})

    def _choose(
        self, chosen: list[int], most: int, sampling: Sampling, given: dict[str, Any]
    ) -> Iterator[int]:
        """Tokens that follow `chosen`, until there are `most`; `given` goes to every call."""
        source = torch.Generator()
        if sampling.seed is None:
            source.seed()
        else:
            source.manual_seed(sampling.seed)
        processors = _processors(sampling, getattr(self.model, "generation_config", None))
        ids_name = self.ids_name
        cache: dict[str, Any] = {}
        new = torch.tensor([chosen])
        while len(chosen) < most:
            with torch.inference_mode():
                output = self.model(
                    **{ids_name: new.to(self.device)},
                    use_cache=True,
                    **given,
                    **cache,
                )
                scores = output.logits[:, -1].float().cpu()
                name = next(name for name in CACHES if name in output)  # one of two is an alias
                cache = {name: output[name]}
                if processors:
                    scores = processors(torch.tensor([chosen]), scores)
                token = _likely(scores[0], sampling, source)
            yield token
            chosen.append(token)
            new = torch.tensor([[token]])


class Rewriter(Generator):
    """An encoder-decoder model: it reads a text and writes another, a translation or a summary."""

    task = "text2text-generation"
    ids_name = "decoder_input_ids"

    def room(self, ids: Sequence[int]) -> int:
        """Tokens of an answer, which do not depend on the text's."""
        return self.max_length - 1

    def _decoder(self, ids: list[int]) -> Any:
        return super()._decoder([])

    def tokens(self, ids: Sequence[int], sampling: Sampling | None = None) -> Iterator[int]:
        """Token ids of the answer to the text `ids`."""
        with torch.inference_mode():
            rows = torch.tensor([list(ids)], device=self.device)
            states = self.model.get_encoder()(input_ids=rows)  # type: ignore[operator]
        given = {"encoder_outputs": states}
        yield from self._choose([self.start], self.max_length, sampling or Sampling(), given)


def _processors(sampling: Sampling, told: Any) -> Any:
    """transformers' own, in its order: what the model's generation config forbids, then sampling."""
    from transformers import generation

    found = generation.LogitsProcessorList()

    def add(name: str, kind: str, *args: Any) -> None:
        value = getattr(told, name, None)
        if value:
            found.append(getattr(generation, kind)(value, *args))

    add("no_repeat_ngram_size", "NoRepeatNGramLogitsProcessor")
    ends = getattr(told, "eos_token_id", None)
    add("bad_words_ids", "NoBadWordsLogitsProcessor", *([] if ends is None else [ends]))
    add("suppress_tokens", "SuppressTokensLogitsProcessor")
    add("forced_bos_token_id", "ForcedBOSTokenLogitsProcessor")
    if sampling.repetition_penalty != 1:
        penalty = float(sampling.repetition_penalty)
        found.append(generation.RepetitionPenaltyLogitsProcessor(penalty))
    if sampling.temperature >= GREEDY:
        if sampling.temperature != 1:
            found.append(generation.TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            found.append(generation.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            found.append(generation.TopPLogitsWarper(float(sampling.top_p)))
    return found


def _likely(scores: Tensor, sampling: Sampling, source: torch.Generator) -> int:
    if sampling.temperature < GREEDY:
        return int(scores.argmax())
    return int(torch.multinomial(scores.softmax(0), 1, generator=source))


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop text."""
    longest = max(map(len, stops), default=0) - 1
    begins = range(max(0, len(text) - longest), len(text))
    return next(
        (len(text) - at for at in begins if any(stop.startswith(text[at:]) for stop in stops)), 0
    )
