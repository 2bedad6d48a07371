"""Classification of texts, pairs and tokens, and extractive question answering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_engine.models.inputs import has_argument
from sparse_engine.tasks.text_model import InputError, TextModel
from sparse_engine.tasks.token_types import has_token_types
from sparse_engine.text.batches import padded

# Longest answer to a question, in tokens.
ANSWER_TOKENS = 30


@dataclass(frozen=True)
class Label:
    """A label and its probability, or the score of a model with a single output."""

    label: str
    score: float


@dataclass(frozen=True)
class Span:
    """A span [start, end) of a text, in characters, with its label and probability."""

    text: str
    label: str
    score: float
    start: int
    end: int


class _Headed(TextModel):
    """A model with a classification head."""

    def __init__(self, model: nn.Module, folder: str | Path, batch_size: int = 32) -> None:
        super().__init__(model, folder, batch_size)
        # GPT-2 has the argument, and would look the types up as words.
        types = getattr(getattr(model, "config", None), "type_vocab_size", 0) or 0
        self.takes_types = (
            types > 1
            and has_argument(model, "token_type_ids")
            and has_token_types(Path(folder), self.config)
        )

    def warm_up(self) -> None:
        """Classify one small pair."""
        self.outputs(self._encode([("warm", "up")]))

    def label(self, index: int) -> str:
        names = getattr(getattr(self.model, "config", None), "id2label", None) or {}
        return str(names.get(index, f"LABEL_{index}"))

    @torch.inference_mode()
    def outputs(self, encodings: Sequence[Any]) -> list[tuple[Any, dict[str, Tensor]]]:
        """The model's outputs for each encoding of the tokenizer, float32 on the CPU, one
        row each.
        """
        rows = [list(encoding.ids) for encoding in encodings]
        self.check_ids(rows)
        if self.config.get("pad_token_id") is None:
            self.batch_size = 1  # decoders find the last token of a text by the padding token
        results: list[Any] = [None] * len(rows)
        for chosen, ids, mask in self.batches(rows):
            inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask}
            if self.takes_types:
                types, _ = padded([encodings[i].type_ids for i in chosen], 0)
                inputs["token_type_ids"] = types
            output = self.model(**{name: t.to(self.device) for name, t in inputs.items()})
            for row, i in enumerate(chosen):
                tensors = {
                    name: tensor[row].float().cpu()
                    for name, tensor in output.items()
                    if isinstance(tensor, Tensor)
                }
                results[i] = encodings[i], tensors
        return results

    def _encode(self, texts: Sequence[Any]) -> list[Any]:
        """Encodings of texts, or of pairs of them."""
        if not texts:
            raise InputError("there is no text")
        flat = [part for text in texts for part in ([text] if isinstance(text, str) else text)]
        for index, text in enumerate(flat):
            if not text.strip():
                raise InputError(f"text {index} is empty")
        cleaned = iter(self.clean(flat))
        pairs = [
            next(cleaned) if isinstance(t, str) else (next(cleaned), next(cleaned)) for t in texts
        ]
        return self.encodings(pairs)


class Classifier(_Headed):
    """Labels of whole texts, or of pairs: sentiment, topics, entailment, similarity.

    >>> Classifier(model, folder).classify(["a fine film", ("it rains", "the street is wet")])
    """

    task = "text-classification"

    def classify(self, texts: Sequence[str | tuple[str, str]]) -> list[list[Label]]:
        """Labels of each text or pair with their probabilities, the likeliest first."""
        answers = []
        for _, output in self.outputs(self._encode(texts)):
            logits = output["logits"]
            kind = getattr(getattr(self.model, "config", None), "problem_type", None)
            if len(logits) == 1 and kind != "multi_label_classification":
                answers.append([Label(self.label(0), float(logits[0]))])
                continue
            several = kind == "multi_label_classification"
            shares = logits.sigmoid() if several else logits.softmax(0)
            labels = [Label(self.label(i), float(p)) for i, p in enumerate(shares)]
            answers.append(sorted(labels, key=lambda label: -label.score))
        return answers


class TokenClassifier(_Headed):
    """Labels of tokens, adjacent ones of one kind merged: named entities, parts of speech."""

    task = "token-classification"

    def tag(self, texts: Sequence[str]) -> list[list[Span]]:
        """Spans of each text that have a label other than "O"; B- and I- begin and continue one."""
        return [
            self._spans(text, encoding, output["logits"].softmax(1))
            for text, (encoding, output) in zip(
                texts, self.outputs(self._encode(texts)), strict=True
            )
        ]

    def _spans(self, text: str, encoding: Any, shares: Tensor) -> list[Span]:
        spans: list[list[Any]] = []  # kind, start, end, scores
        last = None  # kind of the token before, if a span may continue
        for token, (start, end) in enumerate(encoding.offsets):
            if encoding.special_tokens_mask[token] or start == end:
                last = None
                continue
            share, index = shares[token].max(0)
            prefix, kind = _split(self.label(int(index)))
            if kind == "O":
                last = None
                continue
            inside = encoding.word_ids[token] is not None and token > 0
            same_word = inside and encoding.word_ids[token] == encoding.word_ids[token - 1]
            if last == kind and (prefix != "B" or same_word):
                spans[-1][2] = end
                spans[-1][3].append(float(share))
            else:
                spans.append([kind, start, end, [float(share)]])
            last = kind
        return [
            Span(text[start:end], kind, sum(scores) / len(scores), start, end)
            for kind, start, end, scores in spans
        ]


class Answerer(_Headed):
    """The span of a text that answers a question (Devlin et al. 2019, section 4.2)."""

    task = "question-answering"

    def answer(self, question: str, text: str) -> Span:
        """The likeliest span of at most ANSWER_TOKENS tokens; raises InputError for empty ones."""
        ((encoding, output),) = self.outputs(self._encode([(question, text)]))
        inside = torch.tensor([part == 1 for part in encoding.sequence_ids])
        if not bool(inside.any()):
            raise InputError("the text has no tokens, or the tokenizer joins no pairs")
        begin, end = (
            output[name].masked_fill(~inside, -torch.inf).softmax(0)
            for name in ("start_logits", "end_logits")
        )
        joint = torch.outer(begin, end).triu().tril(ANSWER_TOKENS - 1)
        first, last = divmod(int(joint.argmax()), len(joint))
        start, stop = encoding.offsets[first][0], encoding.offsets[last][1]
        return Span(text[start:stop], "answer", float(joint[first, last]), start, stop)


def _split(label: str) -> tuple[str, str]:
    """ "B-LOC" as "B" and "LOC"; a label without such a prefix as "" and itself."""
    prefix, dash, kind = label.partition("-")
    return (prefix, kind) if dash and prefix in set("BIESLU") else ("", label)
