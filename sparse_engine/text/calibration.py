"""Calibration batches: inputs of a model made of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sparse_engine.errors import UsageError
from sparse_engine.models.inputs import (
    check_ids,
    has_decoder,
    inputs_of_texts,
    positions,
    vocabulary,
)
from sparse_engine.text.batches import batches_by_length, padded
from sparse_engine.text.tokenizer import encode


def calibration_batches(
    texts: Sequence[str],
    tokenizer: Any,
    model: nn.Module,
    max_length: int = 128,
    batch_size: int = 32,
) -> list[dict[str, Tensor]]:
    """Inputs of a model, of texts cut to `max_length` tokens, in batches of similar length.

    An encoder-decoder model reads "text<tab>answer", or the text on both sides where there is no
    tab. The order follows length, not `texts`.

    Raises UsageError for a model that needs other inputs than texts, a tokenizer that fails, and
    token ids that the model has no embedding for.
    """
    tokenizer.enable_truncation(min(max_length, positions(model) or max_length))
    reads_answers = any("\t" in text for text in texts) and has_decoder(model)
    parts = [text.partition("\t") if reads_answers else (text, "", "") for text in texts]
    sources = [e.ids for e in encode(tokenizer, [source for source, _, _ in parts])]
    answers = sources
    if reads_answers:
        answers = [e.ids for e in encode(tokenizer, [answer or text for text, _, answer in parts])]
    tokenizer.no_truncation()
    if not all(sources) or not all(answers):
        raise UsageError("the tokenizer makes no tokens of a text; leave it out")
    config = getattr(model, "config", None)
    start = getattr(config, "decoder_start_token_id", None)
    pad = getattr(config, "pad_token_id", None)
    if pad is None and type(model).__name__.endswith("ForSequenceClassification"):
        batch_size = 1  # decoders find the last token of a text by the padding token
    pad = pad if isinstance(pad, int) and 0 <= pad < (vocabulary(model) or 0) else 0
    lengths = [(len(source), len(answer)) for source, answer in zip(sources, answers, strict=True)]
    batches = []
    for chosen in batches_by_length(lengths, batch_size):
        ids, mask = padded([sources[i] for i in chosen], pad)
        target, target_mask = padded([answers[i] for i in chosen], pad)
        if isinstance(start, int):  # a decoder reads its output shifted by one token
            target = target.roll(1, 1)
            target[:, 0] = start
        inputs = inputs_of_texts(model, ids, mask, target, target_mask)
        check_ids(model, inputs, "calibration texts")
        batches.append(inputs)
    return batches
