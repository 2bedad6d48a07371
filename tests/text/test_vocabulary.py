"""Words of a tokenizer's vocabulary in texts: which words, which places, and repeatability."""

from __future__ import annotations

import pytest

from sparse_engine.text.mixture import mix
from sparse_engine.text.sources import Source
from sparse_engine.text.vocabulary import SHARE, whole_words, with_words


class Vocabulary:
    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}


@pytest.mark.parametrize(
    "tokens",
    [
        ("[PAD]", "##piece", "guitar", "cat", "1990", "Paris", "ball"),  # WordPiece
        ("\u0120guitar", "\u0120cat", "\u0120ball", "ball", "guitars"),  # byte-level BPE
        ("\u2581guitar", "\u2581ball", "\u2581Paris", "tion"),  # SentencePiece
    ],
)
def test_words_are_whole(tokens: tuple[str, ...]) -> None:
    assert whole_words(Vocabulary(*tokens)) == ["ball", "guitar"]


def test_most_words_are_replaced_and_the_rest_stays() -> None:
    texts = ["The A value (see Below) of is not 'abcd'." * 200]
    (found,) = with_words(texts, ["guitar"], seed=1)
    assert with_words(texts, ["guitar"], seed=1) == [found]
    assert with_words(texts, ["guitar"], seed=2) != [found]
    back = found.replace("(see Below)", "").count("guitar") / 400  # "value" and "abcd"
    assert abs(back - SHARE) < 0.05
    assert found.count("The A ") == found.count("(see Below) of is not '") == 200
    assert with_words(texts, []) == texts


def test_only_variable_sources_change() -> None:
    fixed = Source("own", ("these stay here",))
    variable = Source("default", ("values values values values",), ("a passage",), variable=True)
    chosen = mix([fixed, variable], 2, words=["guitar"])
    assert chosen.texts[0] == "these stay here"
    assert "guitar" in chosen.texts[1]
    assert "words replaced" in str(chosen)
    assert "words replaced" in chosen.fingerprint["sources"][1]["detail"]
    assert mix([fixed, variable], 2).texts[1] == "values values values values"
