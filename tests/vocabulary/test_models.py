"""Which tokens stay: each kind of tokenizer splits a corpus as before."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

pytest.importorskip("tokenizers")

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from vocabulary_cases import CORPUS, KINDS, OTHER, TRAINING, tokenizer

from sparse_engine.structures import Vocabulary
from sparse_engine.vocabulary.corpus import check_same, choose, choose_size
from sparse_engine.vocabulary.tokenizer_file import TokenizerFile


def file_of(made: Any) -> TokenizerFile:
    return TokenizerFile(made.to_str().encode(), "tokenizer.json")


def cut(made: Any, corpus: list[str], minimum: int = 1) -> Any:
    """The cut tokenizer, of which the code itself checked that it splits the corpus as before."""
    file = file_of(made)
    choice = choose(file, corpus, minimum, set(), None)
    kept = sorted(file.ids[token] for token in choice.kept)
    new = file.renumbered({old: place for place, old in enumerate(kept)})
    check_same(choice, new, corpus, None)
    return new.tokenizer()


def words(model: Any) -> Any:
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_random_corpora_of_random_letters(kind: str) -> None:
    """Few letters, so that words split in many ways and most tokens overlap."""
    source = random.Random(kind)

    def text() -> str:
        lengths = [source.randint(1, 9) for _ in range(6)]
        return " ".join("".join(source.choices("abcd", k=n)) for n in lengths)

    training = [text() for _ in range(60)]
    options = {"vocab_size": 90, "show_progress": False}
    if kind == "wordpiece":
        made = words(models.WordPiece(unk_token="?"))
        trainer: Any = trainers.WordPieceTrainer(special_tokens=["?"], **options)
    elif kind == "bpe":
        made, trainer = words(models.BPE()), trainers.BpeTrainer(**options)
    else:
        made = words(models.Unigram())
        trainer = trainers.UnigramTrainer(unk_token="?", special_tokens=["?"], **options)
    made.train_from_iterator(training, trainer)
    for size in (1, 2, 5, 20):
        corpus = [text() for _ in range(size)]
        new = cut(made, corpus)
        assert new.get_vocab_size() < made.get_vocab_size()
        for line in corpus:
            assert new.encode(line).tokens == made.encode(line).tokens
        for line in training:  # still whole, though in smaller pieces
            assert new.decode(new.encode(line).ids).replace(" ", "").replace("##", "") == (
                line.replace(" ", "")
            )


def test_unknown_words_stay_unknown() -> None:
    """Without "abc" the word abcd would be split into ab and ##cd."""
    vocabulary = ["?", "a", "abc", "ab", "##cd", "x"]
    made = words(models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="?"))
    assert made.encode("abcd").tokens == ["?"]
    assert cut(made, ["x abcd"]).encode("abcd").tokens == ["?"]


def test_a_piece_that_characters_cannot_replace_stays() -> None:
    vocabulary = ["?", "a", "##b", "ab", "aq", "##a", "b"]
    made = words(models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="?"))
    new = cut(made, ["a b"])
    assert new.encode("aq").tokens == ["aq"]
    assert new.encode("ab").tokens == ["a", "##b"]


def test_merges_keep_their_order_and_their_parts() -> None:
    """abc is made of bc, not of ab, although both merges exist."""
    vocabulary = ["a", "b", "c", "bc", "ab", "abc", "abcb"]
    merges = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"), ("abc", "b")]
    made = words(models.BPE({t: i for i, t in enumerate(vocabulary)}, merges))
    new = cut(made, ["abc"])
    assert set(new.get_vocab()) == {"a", "b", "c", "bc", "abc"}
    assert new.encode("abcb bcab").tokens == ["abc", "b", "bc", "a", "b"]


def test_bpe_with_marks_of_words() -> None:
    made = words(models.BPE(unk_token="?", end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["?"], end_of_word_suffix="</w>", show_progress=False
    )
    made.train_from_iterator(TRAINING, trainer)
    new = cut(made, CORPUS)
    assert new.get_vocab_size() < made.get_vocab_size()
    assert new.encode("seldom").tokens.count("?") == made.encode("seldom").tokens.count("?")


def test_the_score_of_unknown_characters_stays() -> None:
    """With a higher one "bqb" would become b, unknown, b."""
    vocabulary = [("?", 0.0), ("a", -1.0), ("b", -1.0), ("bqb", -25.0), ("aaaa", -30.0)]
    made = words(models.Unigram(vocabulary, unk_id=0))
    assert made.encode("bqb").tokens == ["bqb"]
    assert cut(made, ["bqb a"]).encode("bqb").tokens == ["bqb"]


@pytest.mark.parametrize("kind", KINDS)
def test_rare_tokens_are_split(kind: str) -> None:
    made = tokenizer(kind)
    corpus = CORPUS[:1] * 3 + CORPUS
    all_used, frequent = cut(made, corpus), cut(made, corpus, minimum=3)
    assert frequent.get_vocab_size() < all_used.get_vocab_size()
    assert frequent.get_vocab().keys() < all_used.get_vocab().keys() | made.get_vocab().keys()
    assert frequent.encode(CORPUS[0]).tokens == made.encode(CORPUS[0]).tokens
    for text in CORPUS:
        assert frequent.encode(text).tokens.count("[UNK]") == 0
        assert "<unk>" not in frequent.encode(text).tokens


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_kept(kind: str) -> None:
    file = file_of(tokenizer(kind))
    corpus = CORPUS[:1] * 3 + CORPUS[1:] * 2 + TRAINING
    every = choose(file, corpus, 1, set(), None)
    wanted = len(every.kept) - 5
    choice = choose_size(file, corpus, Vocabulary(size=wanted), set(), None)
    assert len(choice.kept) <= wanted
    # The next smaller minimum would keep too many.
    counts = sorted(set(every.use.counts.values()))
    minimum = next(n for n in range(1, 99) if kept_with(file, corpus, n) <= wanted)
    assert kept_with(file, corpus, minimum) == len(choice.kept)
    assert minimum > counts[0]


def kept_with(file: TokenizerFile, corpus: list[str], minimum: int) -> int:
    return len(choose(file, corpus, minimum, set(), None).kept)


def test_whole_words() -> None:
    vocabulary = {word: i for i, word in enumerate(["?", "a", "b", "c", "d"])}
    file = file_of(words(models.WordLevel(vocabulary, unk_token="?")))
    choice = choose_size(file, ["a b", "a b", "a c"], Vocabulary(size=2), set(), None)
    assert choice.kept == {"?", "a"}
    assert cut(file.tokenizer(), ["a b", "x"]).get_vocab().keys() == {"?", "a", "b"}


@pytest.mark.parametrize("kind", KINDS)
def test_twice_in_a_row_changes_nothing(kind: str) -> None:
    once = cut(tokenizer(kind), CORPUS)
    assert cut(once, CORPUS).to_str() == once.to_str()


def test_other_texts_are_still_read() -> None:
    for kind in KINDS:
        made = tokenizer(kind)
        new = cut(made, CORPUS)
        for text in OTHER:
            ids = new.encode(text).ids
            assert max(ids, default=0) < new.get_vocab_size()
            for unknown in ("[UNK]", "<unk>"):
                assert new.encode(text).tokens.count(unknown) <= made.encode(text).tokens.count(
                    unknown
                )


def test_processors_and_padding_get_the_new_ids() -> None:
    made = tokenizer("bpe")
    end = made.token_to_id("<|endoftext|>")
    made.enable_padding(pad_id=end, pad_token="<|endoftext|>")
    from tokenizers import processors

    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.RobertaProcessing(("<|endoftext|>", end), ("<|endoftext|>", end)),
        ]
    )
    file = file_of(made)
    choice = choose(file, CORPUS, 1, set(), None)
    kept = sorted(file.ids[token] for token in choice.kept)
    new = file.renumbered({old: place for place, old in enumerate(kept)})
    last = len(kept) - 1
    plain = json.loads(new.text())
    assert plain["padding"]["pad_id"] == last
    assert plain["post_processor"]["processors"][1]["sep"] == ["<|endoftext|>", last]
    assert new.tokenizer().encode("a").ids[0] == last
