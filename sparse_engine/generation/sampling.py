"""How the next token is chosen from the scores of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_engine.errors import UsageError

# Longest stop text in characters: every new token is compared with all of its prefixes.
MAX_STOP = 256
# Temperatures below this choose the likeliest token: dividing by them would overflow.
GREEDY = 1e-4


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; by default the likeliest.

    Args:
        max_tokens: new tokens at most.
        temperature: scores are divided by it; 0 is greedy.
        top_k: choose among the k likeliest; 0 for all.
        top_p: choose among the likeliest that make up this probability; 1 for all.
        repetition_penalty: divides scores of tokens that occurred already (Keskar et al. 2019,
            arXiv:1909.05858).
        stop: texts that end the answer and are not part of it.
        seed: repeats an answer exactly; None gives another one each time.

    Raises UsageError for values out of range.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, valid, allowed in (
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
            if not valid:
                shown = str(getattr(self, name))[:80]
                raise UsageError(f"{name} is {shown}: give {allowed}")


class Sampler:
    """Chooses tokens one after the other, by a generator of random numbers of its own.

    Args:
        sampling: how to choose.
        generation_config: the model's, for the tokens that it forbids or forces; may be None.
    """

    def __init__(self, sampling: Sampling, generation_config: Any) -> None:
        self.greedy = sampling.temperature < GREEDY
        self.random = torch.Generator()
        if sampling.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(sampling.seed)
        self.processors = logits_processors(sampling, generation_config)

    def next_token(self, ids: Sequence[int], scores: Tensor) -> int:
        """The token after `ids`, of scores float32 [1, vocabulary]."""
        if self.processors:
            scores = self.processors(torch.tensor([list(ids)]), scores)
        if self.greedy:
            return int(scores[0].argmax())
        return int(torch.multinomial(scores[0].softmax(0), 1, generator=self.random))


def logits_processors(sampling: Sampling, generation_config: Any) -> Any:
    """The processors of transformers that apply, in its own order.

    First what the model's generation config forbids or forces, then sampling.
    """
    from transformers import generation

    found = generation.LogitsProcessorList()

    def add(name: str, kind: str, *args: Any) -> None:
        value = getattr(generation_config, name, None)
        if value:
            found.append(getattr(generation, kind)(value, *args))

    add("no_repeat_ngram_size", "NoRepeatNGramLogitsProcessor")
    ends = getattr(generation_config, "eos_token_id", None)
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
