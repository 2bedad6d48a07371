"""Models that transformers saves to folders: BERT with a head, GPT-2, recurrent language models.

All of them have a tokenizer, so that the command line runs and serves their packages.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import nn

from common.vocabulary import END, word_tokenizer
from sparse_engine.models.rnn import RnnConfig, RnnForCausalLM
from sparse_engine.text.tokenizer import load_tokenizer

LAYERS = 2  # of models whose --layers is not given
CELLS = {"lstm": "lstm", "gru": "gru", "rnn": "rnn_tanh"}

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def label_names(labels: Sequence[str]) -> dict[str, Any]:
    """Options of a config: what the classes are called."""
    return {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}


def bert(
    head: str, labels: Sequence[str], texts: Sequence[list[str]], given: argparse.Namespace
) -> tuple[Any, Callable[[], nn.Module]]:
    """A tokenizer, and what makes the model: a small one, or that of the folder --pretrained.

    Args:
        head: end of the name of the class, as ForSequenceClassification.
        labels: names of the classes.
        texts: words of the texts for training.
        given: options of the script.
    """
    if given.pretrained is not None:
        kind, names = getattr(transformers, f"AutoModel{head}"), label_names(labels)
        if given.layers is not None:
            names["num_hidden_layers"] = given.layers  # the first ones
        return load_tokenizer(given.pretrained), lambda: kind.from_pretrained(
            given.pretrained, **names
        )
    tokenizer = word_tokenizer(texts, given.words, marks=True)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=given.size,
        num_hidden_layers=given.layers or LAYERS,
        num_attention_heads=4,
        intermediate_size=4 * given.size,
        **label_names(labels),
    )
    return tokenizer, lambda: getattr(transformers, f"Bert{head}")(config)


def with_classifier(
    cls: type[nn.Module],
    labels: Sequence[str],
    texts: Sequence[list[str]],
    given: argparse.Namespace,
) -> tuple[Any, Callable[[], nn.Module]]:
    """A tokenizer, and what makes a recurrent tagger or classifier of one layer.

    Args:
        cls: RnnForTokenClassification or RnnForSequenceClassification.
        labels: names of the classes.
        texts: words of the texts for training.
        given: options of the script. The network has both directions if the name of the model has
            "bi"; its embedding is that of the BERT in the folder --pretrained, if there is one.
    """
    embedding = None
    if given.pretrained is None:
        tokenizer = word_tokenizer(texts, given.words)
    else:
        tokenizer = load_tokenizer(given.pretrained)
        bert = transformers.AutoModel.from_pretrained(given.pretrained)
        embedding = bert.get_input_embeddings().weight.detach()
    config = RnnConfig(
        vocab_size=tokenizer.get_vocab_size(),
        embedding_size=given.size // 2 if embedding is None else embedding.shape[1],
        hidden_size=given.size,
        cell=CELLS[given.model.removeprefix("bi")],
        bidirectional=given.model.startswith("bi"),
        dropout=given.dropout,
        **label_names(labels),
    )

    def build() -> nn.Module:
        model = cls(config)
        if embedding is not None:
            with torch.no_grad():
                model.get_input_embeddings().weight.copy_(embedding)
        return model

    return tokenizer, build


def recurrent(words: int, given: argparse.Namespace) -> nn.Module:
    """A recurrent language model, whose output layer is its embedding."""
    config = RnnConfig(
        vocab_size=words,
        embedding_size=given.size,
        hidden_size=given.size,
        num_hidden_layers=given.layers or LAYERS,
        cell=CELLS[given.model],
        dropout=given.dropout,
        tie_word_embeddings=True,
        bos_token_id=END,
        eos_token_id=END,
    )
    return RnnForCausalLM(config)


def gpt(words: int, positions: int, given: argparse.Namespace) -> nn.Module:
    """A small GPT-2, whose output layer is its embedding."""
    config = transformers.GPT2Config(
        vocab_size=words,
        n_positions=positions,
        n_embd=given.size,
        n_layer=given.layers or LAYERS,
        n_head=4,
        bos_token_id=END,
        eos_token_id=END,
    )
    return transformers.GPT2LMHeadModel(config)
