"""Generated tokens back to text, as they come, up to a stop text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextChunk:
    """Some more of a generated text.

    text: what follows the chunk before; tokens: number of tokens generated so far;
    finish: of the last chunk "stop" or "length", else None.
    """

    text: str
    tokens: int
    finish: str | None = None


def text_chunks(
    tokens: Iterable[int],
    tokenizer: Any,
    prompt: Sequence[int],
    ends: set[int],
    stop: Sequence[str],
    max_tokens: int,
) -> Iterator[TextChunk]:
    """The text of `tokens` in chunks; the last one has the reason for the end.

    Args:
        tokens: generated token ids.
        tokenizer: a `tokenizers.Tokenizer`.
        prompt: token ids before the first, so that a word that follows them keeps its space.
        ends: token ids that end the text.
        stop: texts that end it and are left out. Text that may be the start of one is held back.
        max_tokens: tokens at most, 1 or more.
    """
    from tokenizers.decoders import DecodeStream

    decoder = DecodeStream(ids=list(prompt), skip_special_tokens=True)
    pending, count = "", 0
    for token in tokens:
        if token in ends:
            yield TextChunk(pending, count, "stop")
            return
        count += 1
        pending += decoder.step(tokenizer, token) or ""
        found = [at for text in stop if (at := pending.find(text)) >= 0]
        if found:
            yield TextChunk(pending[: min(found)], count, "stop")
            return
        if count == max_tokens:
            break
        ready = len(pending) - stop_prefix(pending, stop)
        if ready:
            yield TextChunk(pending[:ready], count)
            pending = pending[ready:]
    yield TextChunk(pending, count, "length")


def stop_prefix(text: str, stops: Sequence[str]) -> int:
    """Number of characters at the end of `text` that may be the start of a stop text."""
    longest = max(map(len, stops), default=0) - 1
    starts = range(max(0, len(text) - longest), len(text))
    return next(
        (len(text) - at for at in starts if any(stop.startswith(text[at:]) for stop in stops)), 0
    )
