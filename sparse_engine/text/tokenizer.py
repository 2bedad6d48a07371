"""Texts as model inputs: read them, tokenize them with the model's own tokenizer, batch them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.errors import InvalidFileError, UsageError, one_line
from sparse_engine.io.model_files import ModelFiles
from sparse_engine.models.inputs import (
    check_ids,
    has_decoder,
    inputs_of_texts,
    positions,
    vocabulary,
)


def read_texts(path: Path) -> list[str]:
    """One text a line, blank lines left out; a tab may stand before an answer. Raises UsageError."""
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UsageError(f"calibration file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"calibration file {path} is not UTF-8 text: {error.reason}") from error
    texts = [text for text in texts if text]
    if not texts:
        raise UsageError(f"calibration file {path} holds no text: write one text a line")
    return texts


def load_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a model folder, its own padding and truncation switched off.

    Many published files cut texts at 128 tokens without a word. Raises InvalidFileError.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError("texts need tokenizers: pip install sparse-engine[hf]") from error
    path = folder / "tokenizer.json"
    raw = ModelFiles(folder).read(path.name)
    if raw is None:
        raise InvalidFileError(f"{path} is missing: reading text needs the model's tokenizer")
    try:
        tokenizer = Tokenizer.from_buffer(raw)
    except Exception as error:  # the Rust side raises Exception itself
        raise InvalidFileError(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Any, texts: Sequence[Any]) -> list[Any]:
    """Encodings of texts, or of pairs of them; raises UsageError where the tokenizer fails."""
    with one_line("the tokenizer fails on a text; does its vocabulary have the unknown token?"):
        found: list[Any] = tokenizer.encode_batch(list(texts))
    return found


def encode_batches(
    texts: Sequence[str],
    tokenizer: Any,
    model: nn.Module,
    max_length: int = 128,
    batch: int = 32,
) -> list[dict[str, Tensor]]:
    """Inputs of a model, of texts cut to `max_length` tokens, in batches of like length.

    An encoder-decoder model reads "text<tab>answer", or the text on both sides where there is no
    tab. Order follows length, not `texts`: meant for calibration.

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
    order = sorted(range(len(sources)), key=lambda i: (len(sources[i]), len(answers[i])))
    config = getattr(model, "config", None)
    start = getattr(config, "decoder_start_token_id", None)
    pad = getattr(config, "pad_token_id", None)
    if pad is None and type(model).__name__.endswith("ForSequenceClassification"):
        batch = 1  # decoders look for their last token by it
    pad = pad if isinstance(pad, int) and 0 <= pad < (vocabulary(model) or 0) else 0
    batches = []
    for at in range(0, len(order), batch):
        chosen = order[at : at + batch]
        pairs = [_padded([rows[i] for i in chosen], pad) for rows in (sources, answers)]
        (ids, mask), (target, target_mask) = pairs
        if isinstance(start, int):
            # Decoders read what they are to write one token late.
            target = target.roll(1, 1)
            target[:, 0] = start
        given = inputs_of_texts(model, ids, mask, target, target_mask)
        check_ids(model, given, "calibration texts")
        batches.append(given)
    return batches


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, int64 [n, longest]."""
    ids = torch.full((len(rows), max(map(len, rows))), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask
