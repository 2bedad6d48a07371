"""A tokenizer of whole words, made from texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # with the ids 0 to 3
START, END = 2, 3


def word_tokenizer(texts: Iterable[list[str]], size: int, marks: bool = False) -> Tokenizer:
    """A tokenizer for texts whose words are separated by spaces.

    Args:
        texts: words of the texts for training.
        size: most words; the most frequent ones are taken, in a fixed order.
        marks: put [CLS] before a text and [SEP] after it, as BERT has it.
    """
    counts = Counter(word for text in texts for word in text)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: size - len(SPECIAL)]
    ids = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *frequent]))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    if marks:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", START), ("[SEP]", END)],
        )
    return tokenizer
