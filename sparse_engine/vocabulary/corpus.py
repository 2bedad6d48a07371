"""Which tokens a corpus uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sparse_engine.errors import SparseEngineError, UsageError
from sparse_engine.structures import Vocabulary
from sparse_engine.text.tokenizer import encode
from sparse_engine.vocabulary.tokenizer_file import TokenizerFile

Progress = Callable[[int, int, str], None]
TEXTS = 1000  # that are encoded at a time


@dataclass(frozen=True)
class Use:
    """How often a corpus uses each token.

    Attributes:
        counts: by token.
        for_unknown: tokens without which words would not be unknown that are.
    """

    counts: Counter[str]
    for_unknown: set[str]


@dataclass(frozen=True)
class Choice:
    """The tokens that are kept.

    Attributes:
        kept: all of them.
        use: of the corpus, without its rare tokens.
        reference: the tokenizer without rare tokens; itself where none is rare.
    """

    kept: set[str]
    use: Use
    reference: TokenizerFile


def choose_size(
    file: TokenizerFile,
    texts: Sequence[str],
    structure: Vocabulary,
    special: set[str],
    progress: Progress | None,
) -> Choice:
    """The tokens that are kept, at most as many as the structure allows; see `choose`.

    Raises:
        UsageError: as `choose`, or if more tokens have to stay.
    """
    choice = choose(file, texts, structure.minimum, special, progress)
    if structure.size is None or len(choice.kept) <= structure.size:
        return choice
    # The least minimum that is enough lies above `low` and at or below `high`.
    low, high = structure.minimum, max(choice.use.counts.values()) + 1
    choice = choose(file, texts, high, special, progress)
    if len(choice.kept) > structure.size:
        raise UsageError(
            f"structure {structure.name}: size={structure.size}: {len(choice.kept)} tokens have "
            "to stay, so that any text can be read"
        )
    while high - low > 1:
        middle = (low + high) // 2
        tried = choose(file, texts, middle, special, progress)
        if len(tried.kept) <= structure.size:
            choice, high = tried, middle
        else:
            low = middle
    return choice


def choose(
    file: TokenizerFile,
    texts: Sequence[str],
    minimum: int,
    special: set[str],
    progress: Progress | None,
) -> Choice:
    """The tokens that a corpus uses, and those without which other texts could not be split.

    Rare tokens are removed first. Their words are then split into smaller tokens, which are counted
    again, until none that is used is rare.

    Args:
        file: the tokenizer.
        texts: the corpus.
        minimum: how often a token is used at least that is not rare.
        special: tokens that are kept in any case.
        progress: called with (done, total, what).

    Raises:
        UsageError: if the corpus has no tokens, or none but unknown ones.
    """
    always = file.added | file.model.always() | special
    reference = file
    while True:
        use = count(reference, texts, progress)
        unknown = use.counts[reference.model.unknown or ""]
        if reference is file and not sum(use.counts.values()) - unknown:
            reason = f"all its {unknown} tokens are unknown" if unknown else "it has no tokens"
            raise UsageError(f"the vocabulary does not fit the corpus: {reason}")
        frequent = {t for t, n in use.counts.items() if n >= minimum}
        needed = always | frequent | use.for_unknown
        needed |= reference.model.needed(needed)
        rare = use.counts.keys() - needed
        if not rare:
            return Choice(needed, use, reference)
        kept = sorted(i for token, i in reference.ids.items() if token not in rare)
        reference = reference.renumbered({old: new for new, old in enumerate(kept)})


def count(file: TokenizerFile, texts: Sequence[str], progress: Progress | None) -> Use:
    """How often texts use each token; the ones that are put around a text do not count."""
    tokenizer = file.tokenizer()
    unknown, normalizer = file.model.unknown, tokenizer.normalizer
    counts: Counter[str] = Counter()
    for_unknown: set[str] = set()
    for text, encoding in encodings(tokenizer, texts, "tokens of the corpus", progress):
        counts.update(encoding.tokens)
        if unknown not in encoding.tokens:
            continue
        for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            if token == unknown:
                word = text[start:end]
                word = word if normalizer is None else normalizer.normalize_str(word)
                for_unknown |= file.model.needed_for_unknown(word)
    return Use(counts, for_unknown)


def check_same(choice: Choice, new: TokenizerFile, texts: Sequence[str], progress: Any) -> None:
    """Raise SparseEngineError unless a cut tokenizer splits the corpus as the reference does."""
    what = "tokens compared"
    before = encodings(choice.reference.tokenizer(), texts, what, progress)
    after = encodings(new.tokenizer(), texts, what, None)
    for (text, old), (_, cut) in zip(before, after, strict=True):
        if old.tokens != cut.tokens:
            raise SparseEngineError(
                f"the cut tokenizer splits {text[:60]!r} otherwise: nothing was changed"
            )


def encodings(
    tokenizer: Any, texts: Sequence[str], what: str, progress: Progress | None
) -> Iterator[tuple[str, Any]]:
    """Each text with its encoding, without the tokens that are put around it."""
    done = 0
    for start in range(0, len(texts), TEXTS):
        part = texts[start : start + TEXTS]
        found = encode(tokenizer, part, special=False)
        done += len(part)
        if progress is not None:
            progress(done, len(texts), what)
        yield from zip(part, found, strict=True)
