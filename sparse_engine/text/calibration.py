"""Calibration texts from files and from what every machine has, and inputs of a model made of them.

texts = calibration_texts(["own.txt:0.7", "default:0.3"], samples=512)
batches = calibration_batches(texts.texts, load_tokenizer(folder), model)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparse_engine.errors import SparseEngineError, UsageError
from sparse_engine.models.inputs import (
    check_ids,
    has_decoder,
    inputs_of_texts,
    positions,
    vocabulary,
)
from sparse_engine.text.batches import batches_by_length, padded
from sparse_engine.text.mixture import CalibrationTexts, mix
from sparse_engine.text.sources import DEFAULT, Source, find_sources
from sparse_engine.text.tokenizer import encode, load_tokenizer
from sparse_engine.text.vocabulary import whole_words


def calibration_texts(
    sources: Sequence[str] = (DEFAULT,),
    samples: int = 512,
    seed: int = 0,
    long: bool = False,
    tokenizer: Any = None,
) -> CalibrationTexts:
    """Draw texts from files of one text a line, and from the built-in texts.

    Args:
        sources: each "FILE", "FILE:SHARE", "default" or "default:SHARE". Without shares all
            sources are equal.
        samples: the number of texts.
        seed: of the draw.
        long: of the built-in texts draw passages instead of sentences, for models that generate.
        tokenizer: of the model; most words of the built-in texts are replaced by words that it has
            tokens for. None leaves them as they are, as is right for models that generate.

    Raises:
        UsageError: if a source cannot be read or its share is no positive number.

    Example:
        texts = calibration_texts(["own.txt:0.7", "default:0.3"])
        print(texts)
    """
    found = find_sources(sources)
    if not found:
        raise UsageError("no calibration sources; give a file, or 'default'")
    return mix(found, samples, seed, long, whole_words(tokenizer) if tokenizer else ())


@dataclass(frozen=True)
class Draw:
    """How calibration texts are drawn, for a model that is not loaded yet.

    Attributes:
        sources: where texts come from.
        samples: the number of texts.
        max_length: tokens that a text is cut to.
        seed: of the draw.
    """

    sources: Sequence[Source]
    samples: int = 512
    max_length: int = 128
    seed: int = 0

    def batches(
        self, folder: Path, model: nn.Module, batch_size: int = 32
    ) -> tuple[list[dict[str, Tensor]], CalibrationTexts]:
        """Inputs of a model made with the tokenizer of its folder, and their texts.

        Of the built-in texts a model that generates gets passages. Any other model gets sentences
        with words of its vocabulary.

        Raises:
            UsageError: if the model or its tokenizer cannot read the texts.
        """
        generates = getattr(model, "can_generate", lambda: False)()
        try:
            tokenizer = load_tokenizer(folder)
            words = () if generates else whole_words(tokenizer)
            texts = mix(self.sources, self.samples, self.seed, generates, words)
            batches = calibration_batches(
                texts.texts, tokenizer, model, self.max_length, batch_size
            )
        except SparseEngineError as error:
            if any(source.name == DEFAULT for source in self.sources):
                raise UsageError(
                    f"the built-in calibration texts do not fit this model: {error}; give texts "
                    "that do, or 'none' as calibration"
                ) from error
            raise
        return batches, texts


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
